"""What the atlas of estimators answers: tables and figures of its cells."""
