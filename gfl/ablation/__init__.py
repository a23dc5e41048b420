"""Use 3: the paper's tables as studies, their runs and reports."""
