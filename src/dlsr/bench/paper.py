"""The paper's tables as printed, for comparison: in percent, without standard deviations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Metric = Literal["auroc", "fpr95_id_positive"]


@dataclass(frozen=True)
class PaperTable:
    """One ID dataset of one table."""

    table: str
    """Name of the table, such as `table3`."""
    id: str
    encoder: str
    metric: Metric
    ood: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]
    """Numbers by detector, in the order of `ood`; None if not printed."""


def _table(table: str, id: str, metric: Metric, ood: str, text: str, encoder: str = "efficientnet_b4") -> PaperTable:
    rows = {}
    for line in text.strip().splitlines():
        name, *numbers = line.split()
        rows[name] = tuple(None if number == "-" else float(number) for number in numbers)
    return PaperTable(table, id, encoder, metric, tuple(ood.split()), rows)


_SIX = "svhn lsun-c lsun-r isun textures places365"
_SCENES = "sun inaturalist textures places365"
_AUROC: Metric = "auroc"
_FPR: Metric = "fpr95_id_positive"

PAPER: tuple[PaperTable, ...] = (
    _table("table1", "cifar10", _AUROC, "svhn lsun-r mnist fmnist kmnist omniglot notmnist", """
        glow        88.3 21.3 85.8 71.2 38.0 95.5 53.9
        pixelcnn++  73.7 64.0 96.7 90.7 82.6 98.9 82.6
        vae         95.9 40.3 99.9 99.1 99.9 99.6 99.4
        ddpm        97.3 68.2 83.2 84.3 89.7 35.9 88.7
        autoencoder 57.7 81.5 95.8 79.6 90.5 81.5 81.6
        dlsr+mse    97.3 97.6 99.4 99.0 99.5 99.1 99.8
        dlsr+lr     98.2 97.8 98.9 98.8 99.1 97.1 99.5
        dlsr+mfsim  98.9 99.8 99.9 99.9 99.9 99.9 99.9
    """),
    _table("table2", "celeba", _AUROC, "sun inaturalist textures places365", """
        vae         95.89 95.52 91.73 97.58
        ddpm        83.41 82.38 78.33 76.25
        autoencoder 32.90 41.56 56.33 35.90
        dlsr+mse    99.98 100.00 99.93 99.96
        dlsr+lr     97.15 99.96 98.51 97.47
        dlsr+mfsim  99.98 99.99 99.96 99.98
    """),
    _table("table3", "cifar10", _AUROC, _SIX, """
        msp                94.53 96.37 91.80 92.23 95.93 97.59
        energy             96.79 97.34 94.42 94.64 96.30 98.34
        dice               98.53 99.03 94.49 95.25 97.68 99.63
        ash-s              98.01 98.23 93.17 94.13 97.01 98.48
        simclr+mahalanobis 97.80 73.61 69.28 88.63 76.47 67.42
        simclr+knn         92.40 92.05 89.81 90.14 97.24 94.36
        dlsr+mse           97.31 97.59 93.93 92.78 100 99.96
        dlsr+lr            98.22 97.84 95.37 94.31 100 99.91
        dlsr+mfsim         98.89 99.83 98.83 98.52 100 100
    """),
    _table("table3", "cifar100", _AUROC, _SIX, """
        msp                77.56 84.03 72.09 71.52 90.02 89.00
        energy             76.51 81.59 78.92 76.38 79.38 83.07
        dice               86.93 88.54 71.97 71.29 92.83 90.78
        ash-s              92.11 90.03 63.30 65.12 95.25 92.99
        simclr+mahalanobis 56.24 52.23 61.34 73.53 71.92 51.98
        simclr+knn         54.37 51.49 83.80 77.21 53.31 54.43
        dlsr+mse           83.93 86.86 75.38 71.99 99.99 99.97
        dlsr+lr            88.84 87.60 80.96 77.71 99.98 99.92
        dlsr+mfsim         93.90 99.14 95.74 94.40 100 100
    """),
    _table("table5", "cifar10", _FPR, _SIX, """
        msp                43.99 26.13 48.65 46.89 27.50 15.03
        energy             16.51 11.52 28.38 27.03 16.08 4.99
        dice               7.70 4.81 25.74 21.76 7.80 1.49
        ash-s              6.89 4.15 31.29 26.29 5.21 1.32
        simclr+mahalanobis 9.24 67.73 75.43 64.32 56.22 72.15
        simclr+knn         49.15 54.89 76.97 73.48 15.27 39.39
        dlsr+mse           21.15 19.52 39.67 43.76 0 0.42
        dlsr+lr            14.26 18.67 31.62 37.76 0.06 0.83
        dlsr+mfsim         4.34 0.04 4.42 6.26 0 0
    """),
    _table("table5", "cifar100", _FPR, _SIX, """
        msp                80.10 68.80 80.35 80.36 47.11 57.41
        energy             88.74 78.64 72.35 76.57 95.83 94.04
        dice               63.77 58.96 77.89 78.67 34.26 48.77
        ash-s              34.28 44.39 89.45 86.13 21.44 34.59
        simclr+mahalanobis 94.95 96.35 85.05 86.29 80.37 95.50
        simclr+knn         95.32 97.11 78.45 84.38 95.28 94.82
        dlsr+mse           89.05 69.14 69.63 89.79 0.12 0
        dlsr+lr            62.06 72.19 86.67 86.17 0.42 2.81
        dlsr+mfsim         37.48 1.90 23.05 26.00 0 0
    """),
    _table("table6", "cifar10", _AUROC, _SIX, """
        msp                80.64 95.05 91.65 89.95 87.78 90.43
        energy             81.90 98.21 94.43 93.09 86.84 92.45
        dice               91.92 99.18 91.13 90.51 87.39 92.66
        ash-s              84.16 98.76 95.00 94.40 87.88 91.63
        simclr+mahalanobis 90.17 73.74 86.14 83.25 81.48 91.23
        simclr+knn         92.36 91.13 87.78 91.82 88.62 79.41
        dlsr+mse           81.40 94.02 81.11 81.36 100 100
        dlsr+lr            90.95 92.53 85.22 85.91 100 100
        dlsr+mfsim         95.98 99.86 97.06 96.89 100 100
    """, "resnet50"),
    _table("table6", "cifar100", _AUROC, _SIX, """
        msp                78.38 84.18 78.98 78.09 76.54 72.00
        energy             83.13 89.35 83.83 83.35 78.85 71.42
        dice               87.93 93.32 82.41 82.20 79.29 69.65
        ash-s              91.66 93.24 69.93 72.78 87.75 71.00
        simclr+mahalanobis 91.92 57.14 87.47 88.00 94.96 71.86
        simclr+knn         87.78 84.30 82.51 77.69 83.35 73.74
        dlsr+mse           86.55 99.11 93.02 91.87 100 100
        dlsr+lr            89.17 99.16 93.65 92.33 100 100
        dlsr+mfsim         89.68 99.18 93.64 92.94 100 100
    """, "resnet50"),
    _table("table7", "cifar10", _FPR, _SIX, """
        msp                60.56 16.09 28.21 35.63 45.4 32.93
        energy             59.15 8.07 23.79 30.72 60.2 31.66
        dice               27.07 4.11 37.83 41.12 57.48 32.32
        ash-s              53.93 5.57 20.29 22.31 64.36 39.71
        simclr+mahalanobis 27.65 33.35 48.17 51.22 38.12 60.43
        simclr+knn         24.53 25.29 37.81 27.55 34.36 62.19
        dlsr+mse           94.79 45.99 95.86 91.68 0 0
        dlsr+lr            34.59 25.77 56.54 52.05 0 0
        dlsr+mfsim         21.10 0.02 15.75 16.48 0 0
    """, "resnet50"),
    _table("table7", "cifar100", _FPR, _SIX, """
        msp                53.38 43.52 56.23 57.69 63.63 77.53
        energy             47.04 34.15 51.14 52.36 63.05 80.95
        dice               38.7 28.77 56.21 56.74 65.21 82.63
        ash-s              29.83 28.75 89.48 85.22 51.8 81.48
        simclr+mahalanobis 32.19 80.43 39.93 40.39 28.21 81.44
        simclr+knn         39.23 48.99 60.21 74.99 57.15 80.74
        dlsr+mse           78.54 0.49 41.81 43.12 0 0
        dlsr+lr            65.93 0.57 36.71 38.78 0 0
        dlsr+mfsim         64.72 1.08 39.66 39.79 0 0
    """, "resnet50"),
    _table("table8", "cifar10", _AUROC, "cifar100", """
        msp 86.14
        energy 86.19
        ash-s 87.13
        glow 73.60
        vae 55.95
        ddpm 82.43
        dlsr+mse 87.54
        dlsr+lr 87.24
        dlsr+mfsim 85.60
    """),
    _table("table8", "cifar10", _FPR, "cifar100", """
        msp 52.04
        energy 51.32
        ash-s 51.29
        glow -
        vae 90.41
        ddpm 67.38
        dlsr+mse 48.87
        dlsr+lr 49.48
        dlsr+mfsim 53.70
    """),
    _table("table9", "cifar10", _AUROC, "cifar100 tiny-imagenet", """
        diffguard  89.88 91.88
        dlsr+mse   87.54 97.68
        dlsr+lr    87.24 97.11
        dlsr+mfsim 85.60 99.88
    """),
    _table("table9", "cifar10", _FPR, "cifar100 tiny-imagenet", """
        diffguard  52.67 45.48
        dlsr+mse   48.87 13.42
        dlsr+lr    49.48 15.04
        dlsr+mfsim 53.70 0.39
    """),
    _table("table10", "cifar10", _AUROC, "cifar100 svhn", """
        lmd        60.70 99.20
        dlsr+mse   87.54 97.31
        dlsr+lr    87.24 98.22
        dlsr+mfsim 85.6 98.89
    """),
    _table("table10", "cifar100", _AUROC, "cifar10 svhn", """
        lmd        56.80 98.50
        dlsr+mse   70.52 83.93
        dlsr+lr    72.86 88.84
        dlsr+mfsim 64.58 93.9
    """),
    _table("table11", "cifar10", _AUROC, "svhn lsun-r mnist fmnist kmnist omniglot notmnist", """
        autoencoder 57.68 81.47 95.85 79.61 90.51 81.50 81.61
        feature-vae 83.96 97.69 99.98 98.69 99.96 97.69 99.88
        dlsr+mfsim  98.89 99.83 99.99 99.99 99.99 99.99 99.99
    """),
    _table("table12", "imagenet100", _AUROC, _SCENES, """
        msp        89.68 86.44 86.48 88.85
        energy     90.83 87.82 86.04 90.01
        dice       93.78 89.76 89.52 93.18
        ash-s      90.12 86.94 88.38 88.76
        dlsr+mse   98.81 86.59 97.68 98.79
        dlsr+lr    93.98 51.39 76.02 94.95
        dlsr+mfsim 98.49 84.63 98.08 98.37
    """),
    _table("table12", "imagenet100", _FPR, _SCENES, """
        msp        52.16 57.88 55.18 53.79
        energy     49.46 58.29 66.81 51.80
        dice       37.14 50.47 52.32 41.42
        ash-s      44.54 51.45 45.23 49.70
        dlsr+mse   5.91 71.88 10.76 5.73
        dlsr+lr    16.51 87.99 47.54 16.25
        dlsr+mfsim 8.41 77.86 9.98 8.75
    """),
)  # fmt: skip
