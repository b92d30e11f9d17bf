"""Renders synthetic dermoscopic images of seven classes, which differ in structure, not colour.

A lesion is a set of functions over its own plane, in units of the lesion's mean radius; an image
shows that plane in some pose and light, through hair. Nothing is rasterised before the end, so the
same picture can be rendered at any size.

The structures are dermoscopy's diagnostic criteria in their textbook form (pigment network,
streaks, arborising vessels, ...). Hue, amount and contrast of the pigment, the size of the lesion
and the skin tone are drawn from the same distributions for all classes, so that an image's mean and
deviation do not give away its class.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Float32, UInt8

#: One value per pixel.
Plane = Float32[np.ndarray, "S S"]

# Optical density per unit of each chromophore in red, green and blue: melanin near the surface is
# brown, blood is red, melanin deep in the dermis is blue-grey (Tyndall effect).
_CHROMOPHORES = np.array([(0.45, 0.85, 1.1), (0.3, 1.1, 0.95), (0.95, 0.85, 0.7)], np.float32)
_LIGHT_SKIN = np.array((0.93, 0.76, 0.70), np.float32)
_DARK_SKIN = np.array((0.80, 0.60, 0.49), np.float32)
_HAIR_DENSITY = np.array((1.3, 1.6, 1.8), np.float32)


@dataclasses.dataclass(frozen=True)
class LesionPlane:
    """The place on the lesion that each pixel shows.

    Attributes:
        u: First coordinate from the lesion's centre, in lesion radii.
        v: Second coordinate from the lesion's centre, in lesion radii.
        theta: Polar angle in radians.
        rho: Distance from the centre as a share of the border's: 0 at the centre, 1 on the border.
    """

    u: Plane
    v: Plane
    theta: Plane
    rho: Plane


#: Draws a lesion's structures: larger values for more pigment, in any unit.
Pattern = Callable[[np.random.Generator, LesionPlane], Plane]


@dataclasses.dataclass(frozen=True)
class Appearance:
    """The appearance of the lesions of one class.

    Attributes:
        pattern: The structures inside the lesion.
        softness: Width over which the pigment fades at the border, in lesion radii.
        irregularity: Amplitude of the border's bulges and notches, in lesion radii.
        pseudopods: Length of finger-like projections on one side of the border, in lesion radii.
    """

    pattern: Pattern
    softness: float
    irregularity: float
    pseudopods: float = 0.0


def render(
    appearance: Appearance,
    lesion: np.random.Generator,
    view: np.random.Generator,
    image_size: int,
) -> tuple[UInt8[np.ndarray, "S S 3"], UInt8[np.ndarray, "S S"]]:
    """Draws one image of one lesion.

    Args:
        appearance: Of the lesion's class.
        lesion: Draws what belongs to the lesion; the same state gives the same lesion.
        view: Draws what belongs to the image: pose, zoom, light, hair, ruler, noise.
        image_size: Height and width in pixels.

    Returns:
        The RGB image, uint8 ``(S, S, 3)``, and the lesion's mask, uint8 ``(S, S)`` in {0, 1}.
    """
    axis = ((np.arange(image_size) + 0.5) * 2 / image_size - 1).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    u, v = _pose(lesion, view, x, y)
    plane = _outline(lesion, u, v, appearance)
    # Channels come first until the end, so that each is contiguous in memory.
    skin = _skin(lesion, u, v)
    density = _pigment(lesion, plane, appearance) + _hair(view, x, y) + _ruler(view, x, y)
    image = _light(view, x, y) * skin * np.exp(-density)
    image += 0.016 * view.standard_normal(image.shape, np.float32)
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(pixels), (plane.rho <= 1).astype(np.uint8)


# --- Structures of the classes


def pigment_network(rng: np.random.Generator, plane: LesionPlane) -> Plane:
    """Regular pigment network: a brown honeycomb that thins out towards the border."""
    thinning = _smoothstep(0.5, 1.1, plane.rho)
    return _honeycomb(rng, plane, spacing=rng.uniform(0.29, 0.37)) * (1 - 0.6 * thinning)


def streaks_and_blotches(rng: np.random.Generator, plane: LesionPlane) -> Plane:
    """Radial streaks along a part of the margin, and blotches that lie off the centre."""
    towards = rng.uniform(0, 2 * math.pi)
    side = plane.u * math.cos(towards) + plane.v * math.sin(towards)
    blotch = _smoothstep(0.0, 0.25, side - 0.15 + 0.4 * _noise(rng, plane.u, plane.v, 0.8))
    count, phase = int(rng.integers(15, 20)), rng.uniform(0, 2 * math.pi)
    rays = 0.5 + 0.5 * np.cos(count * plane.theta + phase)
    margin = _smoothstep(0.5, 0.75, plane.rho)
    return 1.2 * blotch + 1.6 * (rays - 0.3) * margin * _sector(rng, plane.theta)


def cysts_and_openings(rng: np.random.Generator, plane: LesionPlane) -> Plane:
    """Milia-like cysts, which are bright dots, and comedo-like openings, which are dark ones."""
    dots = rng.permutation(_scatter(rng, spacing=0.36, jitter=0.25, extent=0.85))
    radii = rng.uniform(0.08, 0.13, len(dots))
    cysts, openings = slice(rng.integers(6, 9)), slice(9, rng.integers(11, 14))
    bright = 1 - _smoothstep(0.5, 1.2, _distance(plane, dots[cysts], radii[cysts]))
    dark = 1 - _smoothstep(0.5, 1.2, _distance(plane, dots[openings], radii[openings]))
    return dark - 1.3 * bright


def arborising_vessels(rng: np.random.Generator, plane: LesionPlane) -> Plane:
    """Arborising vessels: stems that enter from the margin and branch into ever finer twigs."""
    field = np.zeros_like(plane.u)
    start = rng.uniform(0, 2 * math.pi)
    for stem in range(2):
        root = start + stem * math.pi + rng.normal(0, 0.3)
        heading = root + math.pi + rng.normal(0, 0.2)
        twigs = [(0.95 * math.cos(root), 0.95 * math.sin(root), heading, 0.11)]
        for length in (0.5, 0.42, 0.36, 0.3):
            ends = []
            for u0, v0, angle, width in twigs:
                u1, v1 = u0 + length * math.cos(angle), v0 + length * math.sin(angle)
                nearness = 1 - _segment_distance(plane, u0, v0, u1, v1) / width
                np.maximum(field, nearness, out=field)
                for turn in (-1, 1):
                    bent = angle + turn * rng.uniform(0.25, 0.7)
                    ends.append((u1, v1, bent, width * 0.83))
            twigs = ends
    return _smoothstep(0.0, 0.7, field)


def strawberry_pattern(rng: np.random.Generator, plane: LesionPlane) -> Plane:
    """Strawberry pattern, follicles that are bright dots in dark rings, under patches of scale."""
    follicles = _scatter(rng, spacing=0.46, jitter=0.17)
    distance = _distance(plane, follicles, rng.uniform(0.13, 0.19, len(follicles)))
    ring = 1 - _smoothstep(0.25, 0.7, np.abs(distance - 1))
    opening = 1 - _smoothstep(0.2, 0.7, distance)
    scale = _smoothstep(0.8, 1.6, _noise(rng, plane.u, plane.v, 0.7))
    return ring - 0.8 * opening - 0.8 * scale


def central_white_patch(rng: np.random.Generator, plane: LesionPlane) -> Plane:
    """Central scar-like white patch, in a faint network that reaches the periphery."""
    u, v = plane.u - rng.normal(0, 0.06), plane.v - rng.normal(0, 0.06)
    frayed = np.sqrt(u * u + v * v) + 0.06 * _noise(rng, u, v, 0.8)
    extent = rng.uniform(0.4, 0.52)
    around = _smoothstep(extent - 0.14, extent + 0.1, frayed)
    network = _honeycomb(rng, plane, spacing=rng.uniform(0.24, 0.3))
    return around * (1 + 0.3 * network)


def lacunae(rng: np.random.Generator, plane: LesionPlane) -> Plane:
    """Lacunae: round, well-demarcated blood-filled lakes, separated by pale septa."""
    centres = _scatter(rng, spacing=rng.uniform(0.46, 0.56), jitter=0.16)
    radii = rng.uniform(0.16, 0.27, len(centres))
    return 1 - _smoothstep(0.7, 1.2, _distance(plane, centres, radii))


#: The classes of HAM10000, alphabetically.
APPEARANCES: Mapping[str, Appearance] = {
    "akiec": Appearance(strawberry_pattern, softness=0.16, irregularity=0.12),
    "bcc": Appearance(arborising_vessels, softness=0.08, irregularity=0.08),
    "bkl": Appearance(cysts_and_openings, softness=0.02, irregularity=0.07),
    "df": Appearance(central_white_patch, softness=0.1, irregularity=0.05),
    "mel": Appearance(streaks_and_blotches, softness=0.05, irregularity=0.16, pseudopods=0.15),
    "nv": Appearance(pigment_network, softness=0.06, irregularity=0.03),
    "vasc": Appearance(lacunae, softness=0.04, irregularity=0.05),
}


# --- What all lesions share


def _pose(
    lesion: np.random.Generator, view: np.random.Generator, x: Plane, y: Plane
) -> tuple[Plane, Plane]:
    """Lesion coordinates of the pixels; image coordinates are in [-1, 1]."""
    radius, elongation = lesion.uniform(0.5, 0.72), lesion.uniform(0, 0.12)
    radius *= view.uniform(0.88, 1.15)  # zoom
    elongation += view.normal(0, 0.03)  # the dermatoscope's pressure stretches the skin
    angle, mirror = view.uniform(0, 2 * math.pi), view.choice((-1, 1)).item()
    shift_x, shift_y = view.uniform(-0.15, 0.15, 2).tolist()
    cos, sin = math.cos(angle) / radius, math.sin(angle) / radius
    u = cos * (x - shift_x) + sin * (y - shift_y)
    v = cos * (y - shift_y) - sin * (x - shift_x)
    return u * math.exp(-elongation), v * (mirror * math.exp(elongation))


def _outline(rng: np.random.Generator, u: Plane, v: Plane, appearance: Appearance) -> LesionPlane:
    """Polar coordinates about the lesion, whose border encloses the same area in all classes."""
    harmonics = np.arange(2, 8)
    amplitudes = rng.normal(0, appearance.irregularity, len(harmonics)) / np.sqrt(harmonics)
    phases = rng.uniform(0, 2 * math.pi, len(harmonics))
    fingers, phase = rng.integers(9, 14), rng.uniform(0, 2 * math.pi)
    # Lesions grow unevenly: the whole plane is slightly distorted.
    u, v = u + 0.04 * _noise(rng, u, v, 0.9), v + 0.04 * _noise(rng, u, v, 0.9)
    angles = np.linspace(-math.pi, math.pi, 512)
    border = 1 + np.cos(np.outer(angles, harmonics) + phases) @ amplitudes
    projections = np.cos(fingers * angles / 2 + phase) ** 4 * _sector(rng, angles)
    border += appearance.pseudopods * projections
    border = np.maximum(border, 0.4)
    border /= math.sqrt(np.mean(border**2))

    theta = np.arctan2(v, u)
    rho = np.sqrt(u * u + v * v) / np.interp(theta, angles, border).astype(np.float32)
    return LesionPlane(u, v, theta, rho)


def _skin(rng: np.random.Generator, u: Plane, v: Plane) -> Float32[np.ndarray, "3 S S"]:
    """The skin's reflectance: its tone, mottled and creased by fine lines."""
    tone = _LIGHT_SKIN + rng.uniform(0, 1) * (_DARK_SKIN - _LIGHT_SKIN)
    tone = tone * np.exp(rng.normal(0, 0.04, 3)).astype(np.float32)
    mottling = 0.02 * _noise(rng, u, v, 1.2) + 0.015 * _noise(rng, u, v, 0.15)
    return tone[:, None, None] * (1 + mottling)


def _pigment(
    rng: np.random.Generator, plane: LesionPlane, appearance: Appearance
) -> Float32[np.ndarray, "3 S S"]:
    """Optical density of the lesion over the skin, per colour channel."""
    # The ground and the structures differ in hue, each a mixture of the chromophores.
    ground, relief = rng.dirichlet((2.0, 0.8, 0.8), 2).astype(np.float32) @ _CHROMOPHORES
    amount, contrast = rng.uniform(0.65, 1.1), rng.uniform(0.18, 0.4)
    inside = plane.rho <= 1
    structure = _standardise(appearance.pattern(rng, plane), inside)
    mottling = _noise(rng, plane.u, plane.v, 1.2)
    structure = structure * (1 + 0.25 * mottling) + 0.5 * _noise(rng, plane.u, plane.v, 0.9)
    structure += rng.normal(0, 0.5) * plane.rho  # pigment may gather in the middle or outside
    # The same mean and deviation in all classes, whatever the structure.
    structure = contrast * np.clip(_standardise(structure, inside), -2.5, 2.5)
    lighter, darker = amount + np.minimum(structure, 0), np.maximum(structure, 0)
    density = ground[:, None, None] * lighter + relief[:, None, None] * darker
    edge = 1 / (1 + np.exp(np.clip((plane.rho - 1) * (3 / appearance.softness), -30, 30)))
    return np.maximum(density, -0.1) * edge


def _standardise(values: Plane, inside: np.ndarray) -> Plane:
    """Zero mean and unit deviation over the pixels inside."""
    within = values[inside]
    return (values - within.mean()) / (within.std() + 1e-6)


# --- What belongs to the image and not to the lesion


def _light(rng: np.random.Generator, x: Plane, y: Plane) -> Float32[np.ndarray, "3 S S"]:
    """Exposure, colour cast, slope of the light, and vignette."""
    gain = np.exp(rng.normal(0, 0.1) + rng.normal(0, 0.035, 3)).astype(np.float32)
    slope_x, slope_y = rng.normal(0, 0.06, 2).tolist()
    radius = np.sqrt(x * x + y * y)
    falloff = rng.uniform(0, 0.15) * radius**2
    aperture = rng.uniform(1.02, 1.25) if rng.random() < 0.3 else 2.0  # the tube's dark rim
    rim = 1 - 0.9 * _smoothstep(aperture - 0.06, aperture + 0.06, radius)
    return gain[:, None, None] * ((1 + slope_x * x + slope_y * y - falloff) * rim)


def _hair(rng: np.random.Generator, x: Plane, y: Plane) -> Float32[np.ndarray, "3 S S"]:
    """Optical density of hairs, each an arc across the image."""
    count = rng.integers(1, 7) if rng.random() < 0.5 else 0
    covered = np.zeros_like(x)
    for _ in range(count):
        angle, offset = rng.uniform(0, 2 * math.pi), rng.uniform(-0.9, 0.9)
        bend, start = rng.normal(0, 0.25), rng.uniform(-1.4, 0.3)
        half_width, darkness = rng.uniform(0.01, 0.02), rng.uniform(0.3, 1)
        along = x * math.cos(angle) + y * math.sin(angle)
        across = y * math.cos(angle) - x * math.sin(angle) - offset
        distance = np.abs(across - bend * along**2) / np.sqrt(1 + (2 * bend * along) ** 2)
        hair = darkness * _stroke(distance, half_width) * (along > start)
        np.maximum(covered, hair, out=covered)
    return covered * _HAIR_DENSITY[:, None, None]


def _ruler(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Optical density of a ruler's millimetre ticks along one side of the image."""
    side, turned, step = rng.choice((-1, 1)).item(), rng.random() < 0.5, rng.uniform(0.13, 0.2)
    if rng.random() > 0.15:
        return np.zeros_like(x)
    along, depth = (y, 1 - side * x) if turned else (x, 1 - side * y)
    tick = np.rint(along / step)
    length = np.where(tick % 5 == 0, 0.26, 0.15)
    return 1.5 * _stroke(np.abs(along - tick * step), 0.02) * (depth < length)


# --- Drawing


def _smoothstep(low: float, high: float, values: np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, a cubic between."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _noise(rng: np.random.Generator, u: Plane, v: Plane, wavelength: float) -> Plane:
    """Smooth noise of zero mean and unit variance: a sum of plane waves in random directions."""
    waves = 5
    direction = rng.uniform(0, 2 * math.pi, waves)
    wavenumber = 2 * math.pi / wavelength * rng.uniform(0.6, 1.4, waves)
    phase = rng.uniform(0, 2 * math.pi, waves)
    total = np.zeros_like(u)
    for k, a, p in zip(wavenumber.tolist(), direction.tolist(), phase.tolist(), strict=True):
        total += np.cos(u * (k * math.cos(a)) + v * (k * math.sin(a)) + p)
    return total * math.sqrt(2 / waves)


def _honeycomb(rng: np.random.Generator, plane: LesionPlane, spacing: float) -> Plane:
    """A honeycomb: 1 on its cords, 0 in its holes, which lie `spacing` apart."""
    turn, k = rng.uniform(0, 2 * math.pi), 4 * math.pi / (math.sqrt(3) * spacing)
    # Three plane waves, 120 degrees apart: 3 at the holes' centres, below -1 on the cords.
    total = np.zeros_like(plane.u)
    for angle in (turn, turn + 2 * math.pi / 3, turn + 4 * math.pi / 3):
        total += np.cos(plane.u * (k * math.cos(angle)) + plane.v * (k * math.sin(angle)))
    return 1 - _smoothstep(-1.2, 0.4, total)


def _scatter(
    rng: np.random.Generator, spacing: float, jitter: float, extent: float = 1.05
) -> Float[np.ndarray, "N 2"]:
    """Points about `spacing` apart up to `extent`, each moved by up to `jitter` of it."""
    steps = np.arange(-4, 5) * spacing
    rows, columns = np.meshgrid(steps * math.sqrt(0.75), steps, indexing="ij")
    columns = columns + spacing / 2 * (np.arange(-4, 5) % 2)[:, None]
    points = np.stack((columns, rows), -1).reshape(-1, 2)
    points += spacing * rng.uniform(-jitter, jitter, points.shape)
    angle = rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    points = (points + rng.uniform(-0.5, 0.5, 2) * spacing) @ np.array([(cos, sin), (-sin, cos)])
    return points[np.hypot(*points.T) < extent]


def _distance(
    plane: LesionPlane,
    points: Float[np.ndarray, "N 2"],
    radii: Float[np.ndarray, " N"] | None = None,
) -> Plane:
    """Distance to the nearest point, in units of that point's radius if radii are given."""
    radii = np.ones(len(points)) if radii is None else radii
    nearest = np.full_like(plane.u, np.inf)
    for (u, v), radius in zip(points.tolist(), radii.tolist(), strict=True):
        np.minimum(nearest, ((plane.u - u) ** 2 + (plane.v - v) ** 2) / radius**2, out=nearest)
    return np.sqrt(nearest)


def _segment_distance(plane: LesionPlane, u0: float, v0: float, u1: float, v1: float) -> Plane:
    """Distance to the segment from (u0, v0) to (u1, v1)."""
    du, dv = u1 - u0, v1 - v0
    u, v = plane.u - u0, plane.v - v0
    share = np.clip((u * du + v * dv) / (du * du + dv * dv), 0, 1)
    u, v = u - share * du, v - share * dv
    return np.sqrt(u * u + v * v)


def _sector(rng: np.random.Generator, theta: np.ndarray) -> np.ndarray:
    """1 within about 80 degrees of a random direction, falling to 0 on the opposite side."""
    return _smoothstep(-0.3, 0.3, np.cos(theta - rng.uniform(0, 2 * math.pi)))


def _stroke(distance: Plane, half_width: float) -> Plane:
    """Share of each pixel covered by a stroke whose centre line is at `distance`."""
    pixel = 2 / len(distance)
    return np.clip((half_width - distance) / pixel + 0.5, 0, min(1, 2 * half_width / pixel))
