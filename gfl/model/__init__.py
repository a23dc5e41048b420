try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError) as error:  # RuntimeError: "operator torchvision::nms does not exist"
    raise ImportError(
        f"torch and torchvision do not fit together ({error}); install a matching pair: pip install -r requirements.txt"
    ) from None
