try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError) as error:  # RuntimeError: "operator torchvision::nms does not exist"
    raise ImportError(
        f"torch and torchvision do not fit together ({error}); install matching releases of the two"
    ) from None
