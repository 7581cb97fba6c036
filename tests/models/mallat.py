"""Mallat's scattering of images in Fourier space, float64: slow, and with another method than what it judges.

Filters, padding and order of the paths as kymatio 0.3 has them (Andreux et al. 2020, arXiv:1812.11214; Bruna and
Mallat 2013, arXiv:1203.1513), on numpy alone.
"""

import numpy as np

J, L = 2, 8


def scattering(images: np.ndarray) -> np.ndarray:
    """Coefficients (n, 81, h // 4, w // 4) of images (n, h, w)."""
    height, width = (((side + 4) // 4 + 1) * 4 for side in images.shape[1:])
    up, left = (height - images.shape[1]) // 2, (width - images.shape[2]) // 2
    rows = (up, height - images.shape[1] - up)
    columns = (left, width - images.shape[2] - left)
    padded = np.fft.fft2(np.pad(images.astype(float), ((0, 0), rows, columns), mode="reflect"))
    wavelets = [[np.fft.fft2(morlet(height, width, j, angle)).real for angle in range(L)] for j in range(J)]
    low = np.fft.fft2(gabor(height, width, 1.6, 0.0, 0.0, 1.0)).real
    lows = {1: low, 2: cropped(low)}  # by the factor that was subsampled by before

    def smooth(spectrum: np.ndarray, before: int) -> np.ndarray:
        return np.fft.ifft2(fold(spectrum * lows[before], 4 // before)).real[:, 1:-1, 1:-1]

    first, second = [], []
    fine = [np.fft.fft2(np.abs(np.fft.ifft2(padded * wavelet))) for wavelet in wavelets[0]]
    first += [smooth(spectrum, 1) for spectrum in fine]
    for wavelet in wavelets[1]:
        first.append(smooth(np.fft.fft2(np.abs(np.fft.ifft2(fold(padded * wavelet, 2)))), 2))
    for spectrum in fine:
        for wavelet in wavelets[1]:
            second.append(smooth(np.fft.fft2(np.abs(np.fft.ifft2(fold(spectrum * wavelet, 2)))), 2))
    return np.stack([smooth(padded, 1), *first, *second], axis=1)


def morlet(height: int, width: int, j: int, angle: int) -> np.ndarray:
    """A Gabor wave less so much of its envelope that its mean is 0."""
    sigma, theta, frequency = 0.8 * 2**j, (3 - angle) * np.pi / L, 0.75 * np.pi / 2**j
    wave = gabor(height, width, sigma, theta, frequency, 4 / L)
    envelope = gabor(height, width, sigma, theta, 0.0, 4 / L)
    return wave - wave.sum() / envelope.sum() * envelope


def gabor(height: int, width: int, sigma: float, theta: float, frequency: float, slant: float) -> np.ndarray:
    """exp(-u'Cu + i frequency u) on the torus, whose axes theta turns; as wide across as `slant` is small."""
    turn = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    curve = turn @ np.diag([1.0, slant**2]) @ turn.T / (2 * sigma**2)
    total = np.zeros((height, width), complex)
    for down in range(-2, 3):
        for right in range(-2, 3):
            y, x = np.mgrid[:height, :width] + np.array([down * height, right * width])[:, None, None]
            quadratic = curve[0, 0] * y * y + 2 * curve[0, 1] * y * x + curve[1, 1] * x * x
            phase = frequency * (y * np.cos(theta) + x * np.sin(theta))
            total += np.exp(-quadratic + 1j * phase)
    return total / (2 * np.pi * sigma**2 / slant)


def fold(spectrum: np.ndarray, factor: int) -> np.ndarray:
    """The spectrum of every `factor`th sample."""
    n, height, width = spectrum.shape
    return spectrum.reshape(n, factor, height // factor, factor, width // factor).mean(axis=(1, 3))


def cropped(spectrum: np.ndarray) -> np.ndarray:
    """A filter for half the samples: its frequencies up to theirs."""
    for axis, side in enumerate(spectrum.shape):
        spectrum = np.take(spectrum, np.r_[0 : side // 4, side - side // 4 : side], axis=axis)
    return spectrum
