ENCODER = {"encoder": "test_resnet", "weights": "random"}
TINY = {
    "glow": {"steps": 1, "hidden": 8, "epochs": 1, "batch_size": 32},
    "pixelcnn++": {"channels": 4, "blocks": 1, "mixtures": 2, "epochs": 1},
    "vae": {"width": 4, "latent": 4, "epochs": 1, "regret_steps": 3, "regret_lr": 1e-3},
    "ddpm": {"width": 4, "starts": 2, "steps": 3, "epochs": 1, "batch_size": 64},
    "lmd": {"width": 4, "attempts": 2, "steps": 3, "epochs": 1, "batch_size": 64},
    "diffguard": {"width": 4, "steps": 2, "epochs": 1, "classifier_epochs": 1, "batch_size": 64},
    "simclr+mahalanobis": {"width": 4, "projection": 8, "epochs": 1, "batch_size": 32},
    "simclr+knn": {"width": 4, "projection": 8, "epochs": 1, "batch_size": 32, "neighbours": 5},
    "msp": ENCODER | {"epochs": 2},
    "energy": ENCODER | {"epochs": 2},
    "dice": ENCODER | {"epochs": 2},
    "ash-s": ENCODER | {"epochs": 2},
    "msp+trained": {"width": 4, "epochs": 2, "batch_size": 16},
    "energy+trained": {"width": 4, "epochs": 2, "batch_size": 16},
    "dice+trained": {"width": 4, "epochs": 2, "batch_size": 16},
    "ash-s+trained": {"width": 4, "epochs": 2, "batch_size": 16},
    "anomalib+fre": ENCODER | {"latent": 8, "epochs": 5},
    "anomalib+dfm": ENCODER,
    "pyod+iforest": ENCODER,
    "pyod+lof": ENCODER,
}
"""Settings with which each baseline is fitted in a moment."""
