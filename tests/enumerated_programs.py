"""A program with a class y that is summed out, of which log p(x) is known, and a mixture that is the same."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

X = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.2, 0.8], [1.5, 1.5]]).double()
LABELS = torch.tensor([-1, 2, -1, 0])


class MixtureOfFactors(nn.Module):
    """y ~ Cat(w), z ~ N(0, 1), x | y, z ~ N(c_y + A z, I), with y observed where its label is not −1.

    The guide is q(y | x) q(z | x, y): exact, unless ``off`` shifts it.
    """

    def __init__(self, off=0.0, mark="parallel"):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.2, -0.5, 1.0]).double())
        self.centres = nn.Parameter(torch.tensor([[0.0, 1.0], [-1.0, 0.3], [2.0, 0.0]]).double())
        self.factor = nn.Parameter(torch.tensor([0.8, -0.4]).double())
        self.off = nn.Parameter(torch.tensor(float(off)).double())
        self.infer = {"enumerate": mark} if mark else {}

    def model(self, x, labels):
        with pyro.plate("rows", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), obs=labels.clamp(min=0), obs_mask=labels >= 0)
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.off), 1.0))
            loc = self.centres[y] + self.factor * z.unsqueeze(-1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x, labels):
        with pyro.plate("rows", len(x)):
            with poutine.mask(mask=labels < 0):
                q = dist.Categorical(logits=self.log_joint(x) + self.off * torch.arange(3))
                y = torch.where(labels < 0, pyro.sample("y_unobserved", q, infer=self.infer), labels)
            precision = 1 + self.factor.square().sum()
            loc = (self.factor * (x - self.centres[y])).sum(-1) / precision
            pyro.sample("z", dist.Normal(loc + self.off, precision.rsqrt()))

    def observe(self, batch, generator=None):
        return batch.table, batch.labels

    def log_joint(self, x):
        """Return log p(x, y) of each y, (rows, 3)."""
        covariance = torch.eye(2).double() + self.factor.outer(self.factor)
        parts = dist.MultivariateNormal(self.centres, covariance)
        return (self.logits.log_softmax(-1) + parts.log_prob(x.unsqueeze(1))).detach()

    def log_px(self, x, labels):
        """Return log p(x), or log p(x, y) where y is known."""
        joint = self.log_joint(x)
        return torch.where(labels < 0, joint.logsumexp(-1), joint.gather(1, labels.clamp(min=0)[:, None])[:, 0])


class OfTheModel(nn.Module):
    """s ~ Cat(w), z | s ~ N(c_s, 1), x | z ~ N(z, 0.7²), with s in the model alone, or as one ``mixture``."""

    def __init__(self, mixture=False):
        super().__init__()
        self.mixture = mixture
        self.logits = nn.Parameter(torch.tensor([0.2, -0.5, 1.0]).double())
        self.centres = nn.Parameter(torch.tensor([-1.0, 0.5, 2.0]).double())
        self.scale = nn.Parameter(torch.tensor(0.6).double())

    def model(self, x):
        weights = dist.Categorical(logits=self.logits)
        with pyro.plate("rows", len(x)):
            if self.mixture:
                z = pyro.sample("z", dist.MixtureSameFamily(weights, dist.Normal(self.centres, 1.0)))
            else:
                s = pyro.sample("s", weights, infer={"enumerate": "parallel"})
                z = pyro.sample("z", dist.Normal(self.centres[s], 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.scale * x, 0.8))

    def observe(self, batch, generator=None):
        return batch.table[:, 0]
