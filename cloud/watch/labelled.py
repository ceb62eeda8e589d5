"""Late labels joined with what was predicted, as SQL.

The join is made when somebody asks, not when a label or a prediction arrives: so neither has to wait for the other,
and no order, crash or second results writer can make them miss one another.
"""

from __future__ import annotations

from sqlalchemy import Subquery, and_, exists, or_, select, union_all

from cloud.tables import labels, predictions


def labelled() -> Subquery:
    """One row for each prediction that has a label: its `id`, and the label as number (-1: told by name) or `name`.

    Of several labels of a sample the one that names it counts, before one by `source_id` and model, before one by
    `source_id` alone.
    """
    p, told = predictions.c, labels.c
    said = (p.id, told.label.label("told"), told.name)
    by_sample = select(*said).where(
        told.device_id == p.device_id, told.epoch == p.epoch, told.seq == p.seq, told.source_id == "", told.model == ""
    )
    nearer = labels.alias("nearer").c
    is_nearer = or_(
        and_(nearer.epoch == p.epoch, nearer.seq == p.seq, nearer.source_id == "", nearer.model == ""),
        and_(
            told.model == "",
            nearer.epoch == "",
            nearer.seq == -1,
            nearer.source_id == p.source_id,
            nearer.model == p.model,
        ),
    )
    by_source = select(*said).where(
        told.device_id == p.device_id,
        told.source_id == p.source_id,
        told.epoch == "",
        told.seq == -1,
        or_(told.model == "", told.model == p.model),
        ~exists().where(nearer.device_id == p.device_id, is_nearer),
    )
    return union_all(by_sample, by_source).subquery("labelled")
