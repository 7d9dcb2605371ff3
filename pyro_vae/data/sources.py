"""A data set from what people have: arrays, pictures in folders, frames of pandas, data sets of torch."""

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Self

from pyro_vae.data.arrays import Fields, fields_of_splits
from pyro_vae.data.datasets import fields_of_dataset
from pyro_vae.data.frames import labelled
from pyro_vae.data.items import ItemReader
from pyro_vae.data.picture_folders import fields_of_folder
from pyro_vae.data.shares import is_share
from pyro_vae.files import cache_folder, expanded


class Sources:
    """The class methods by which ``Data`` is made of arrays, pictures, frames and data sets of torch."""

    @classmethod
    def from_arrays(
        cls,
        train: Any = None,
        valid: Any = 0.1,
        test: Any = 0.1,
        labels: Any = None,
        *,
        layout: str | None = None,
        classes: Sequence[str] = (),
        seed: int = 0,
        name: str = "arrays",
        **fields: Any,
    ) -> Self:
        """Return the data set of NumPy arrays or tensors: images, labels, and fields of any other name.

        Images are uint8, or floating-point numbers in [0, 1], which become the nearest of 256 grey levels; their shape
        is (N, H, W), (N, C, H, W) or (N, H, W, C). What is converted or recognised is said in a line of the log.

        Args:
            train: the training images; none for counts, tables and other fields without images.
            valid, test: images, or the share of the training rows that are taken by ``seed``: a fraction or a number.
            labels: whole numbers (N,), −1 where unknown.
            layout: "NCHW" or "NHWC", where the shape does not show it.
            classes: the names of the classes.
            seed: of the rows that become validation and test rows.
            name: of the data set.
            **fields: such as ``counts``, ``table`` or ``mask``, see ``Split``. Where validation or test rows are given
                apart, each field is a dictionary: ``labels={"train": ..., "valid": ..., "test": ...}``.

        Raises ValueError for fields of different lengths, and for whatever else a field's name does not allow. Warns
        with DataWarning of a column of a table that has one value, and of classes that only test rows have.

        >>> import numpy as np
        >>> from pyro_vae import Data
        >>> Data.from_arrays(np.eye(8).repeat(10, 0).reshape(80, 2, 4), labels=np.arange(80) % 3, test=20).train
        Split(images: 52 × 1 × 2 × 4, labels: 52)
        """
        given = {"images": train, **fields, "labels": labels}
        parts = fields_of_splits(given, valid, test, layout=layout, seed=seed)
        return cls.of_fields(name, parts, classes)

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        size: int | tuple[int, int] | None = None,
        *,
        channels: int | None = None,
        background: int = 255,
        valid: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        name: str = "",
    ) -> Self:
        """Return the data set of the pictures in a folder and below, in any format that Pillow reads.

        If there is a folder ``train``, and ``valid`` (or ``val``) or ``test`` beside it, these are the splits; what is
        missing is taken from the training pictures by ``seed``. Each folder in that place is a class, in sorted order;
        pictures beside the folders have the label −1, unknown.

        Args:
            folder: that holds the pictures.
            size: pixels of a side, or (height, width). A picture is scaled until it covers this size, and what is
                beyond it is cut at opposite sides. Without a size all pictures must have the same one.
            channels: 1 for grey levels, 3 for colours; without it grey where no picture has a coloured pixel.
            background: the grey level that shows through transparent pixels.
            valid, test: the share that is taken, a fraction or a number of pictures.
            seed: of the pictures that are taken.
            name: of the data set; without it the folder's.

        Raises DataError for a folder without pictures, pictures of several sizes, or classes that training lacks. Warns
        with DataWarning of pictures that cannot be read, which are counted, named and left out.

        >>> import tempfile
        >>> from pyro_vae import Data
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for n in range(20):
        ...         Image.new("RGB", (9, 8), (n, 2 * n, 255)).save(f"{folder}/{n}.png")
        ...     Data.from_folder(folder, size=4).train
        Split(images: 16 × 3 × 4 × 4, labels: none)
        """
        parts, classes = fields_of_folder(
            folder, size, channels=channels, background=background, valid=valid, test=test, seed=seed
        )
        return cls.of_fields(name or expanded(folder).resolve().name, parts, classes)

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        valid: Any = 0.1,
        test: Any = 0.1,
        *,
        fields: Sequence[str] = ("images", "labels"),
        layout: str | None = None,
        memory: float = 2 << 30,
        key: str | None = None,
        seed: int = 0,
        name: str = "",
    ) -> Self:
        """Return the data set of one of torch or torchvision, map-style or iterable, which is read once.

        An item is an image, or a tuple of the named fields, or a mapping; an image is a picture of Pillow, uint8, or
        floating-point numbers in [0, 1] (see ``from_arrays``). All items have one shape. Rows of more than ``memory``
        bytes are written to the folder ``datasets`` of the cache, and their images mapped from there. A map-style data
        set is known again by its attributes, the files that they name, and some of its rows; it is then not read. An
        iterable, or a data set whose rows come from elsewhere, is known again by ``key`` alone.

        Args:
            dataset: for training.
            valid, test: data sets, or the share of the training rows that is taken: a fraction, or a number where the
                length is known.
            fields: the names of the parts of an item that is a tuple.
            layout: "NCHW" or "NHWC", where the shape of an image does not show it.
            memory: the most bytes in memory.
            key: words that name this version of the data; change them when the data change.
            seed: of the rows that are taken.
            name: of the data set; without it that of its class.

        Raises DataError for an iterable that ends early, for rows of different shapes and for rows that cannot be read,
        and names the row; nothing is then left in the cache. Warns with DataWarning of rows that differ each time they
        are read: augmentation belongs into ``observe``.

        >>> import torch
        >>> from pyro_vae import Data
        >>> pairs = torch.utils.data.TensorDataset(torch.rand(30, 1, 8, 8), torch.arange(30) % 3)
        >>> Data.from_dataset(pairs).train
        Split(images: 24 × 1 × 8 × 8, labels: 24)
        """
        held_out = {"valid": valid, "test": test}
        sources = {"train": dataset} | {split: rows for split, rows in held_out.items() if not is_share(rows)}
        shares = {split: rows for split, rows in held_out.items() if is_share(rows)}
        parts, classes = fields_of_dataset(
            sources, shares, ItemReader(fields, layout), cache_folder() / "datasets", memory=memory, key=key, seed=seed
        )
        return cls.of_fields(name or type(dataset).__name__, parts, classes)

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        labels: Hashable | None = None,
        *,
        valid: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        name: str = "frame",
    ) -> Self:
        """Return the data set of a pandas frame: a field ``table``, float64 (N, D), and labels from one of its columns.

        Numbers stay as they are, booleans become 0 and 1, strings and categories the codes 0, 1, … of their values in
        sorted order (ordered categories: in theirs). A missing value is NaN, a missing label −1. The names of columns
        and the values of codes are those of ``pyro_vae.data.frames.encoded(frame)``.

        ``valid`` and ``test`` are shares of the rows: fractions or numbers. Raises DataError for columns of another
        kind, ValueError for a column without any value and for frames in place of shares. Needs pandas.

        >>> import pandas as pd
        >>> from pyro_vae import Data
        >>> frame = pd.DataFrame({"age": range(20), "kind": ["cat", "dog"] * 10})
        >>> Data.from_frame(frame, labels="kind").classes
        ('cat', 'dog')
        """
        for split, share in (("valid", valid), ("test", test)):
            if not is_share(share):
                raise ValueError(
                    f"{split}: wanted a share of the rows of frame, such as 0.1, or a number of them, got "
                    f"{type(share).__name__}; of frames for each split write schema = "
                    "pyro_vae.tables.Schema.from_frame(frame), then Data.from_arrays(table={'train': "
                    "schema.encode(frame), 'valid': schema.encode(valid), 'test': schema.encode(test)})"
                )
        found = labelled(frame, labels)
        given = {"table": found.table, "labels": found.labels}
        return cls.of_fields(
            name, fields_of_splits(given, valid, test, seed=seed, columns=found.columns), found.classes
        )

    @classmethod
    @abstractmethod
    def of_fields(cls, name: str, parts: Mapping[str, Fields], classes: Sequence[str] = ()) -> Self:
        """Return the data set of the fields of train, valid and test, whose grey levels were checked before."""
