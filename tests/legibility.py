"""What a reader of a figure cannot read: tick labels on top of each other, a legend on top of what it explains."""

from __future__ import annotations

import itertools


def complaints(figure) -> list[str]:
    """One sentence a fault of a matplotlib figure, as it is drawn; an empty list if there is none."""
    figure.canvas.draw()
    renderer, found = figure.canvas.get_renderer(), []
    for axes in figure.axes:
        for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() + axis.get_minor_ticks() if low <= tick.get_loc() <= high]
            labels = [tick.label1 for tick in ticks if tick.label1.get_visible() and tick.label1.get_text()]
            boxes = [(label.get_text(), label.get_window_extent(renderer)) for label in labels]
            found += [
                f"{name} labels {first!r} and {second!r} overlap"
                for (first, one), (second, other) in itertools.combinations(boxes, 2)
                if _overlap(one, other)
            ]
        if axes.get_legend() is not None:
            box = axes.get_legend().get_window_extent(renderer)
            found += [f"the legend covers {what}" for what in _covered(axes, box)]
    return found


def _overlap(one, other) -> bool:
    """Whether two boxes share more than a pixel each way."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    return width > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1


def _covered(axes, box) -> list[str]:
    """Lines, error bars, points and bars of the axes that reach into a box; a span of background may."""
    found = []
    for line in axes.get_lines():
        if line.get_transform().transform_path(line.get_path()).intersects_bbox(box, filled=False):
            found.append(f"the line {line.get_label()!r}")
    for collection in axes.collections:
        transform = collection.get_transform()
        paths = [transform.transform_path(path) for path in collection.get_paths()]
        points = collection.get_offset_transform().transform(collection.get_offsets())
        scattered = len(points) > 1 and any(box.contains(*point) for point in points)
        if scattered or (len(points) <= 1 and any(path.intersects_bbox(box, filled=False) for path in paths)):
            found.append(f"the {type(collection).__name__} {collection.get_label()!r}")
    for bar in axes.patches:
        if bar.get_data_transform() == axes.transData and _overlap(bar.get_window_extent(), box):
            found.append(f"the bar {bar.get_label()!r}")
    return found
