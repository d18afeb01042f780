"""The bill before the run: evaluations, operations, memory and hours, without weights or a GPU.

    python scripts/plan.py --config config/stage_process.py:sd14 --card 4090
    python scripts/plan.py --config config/stage_process.py:sdxl --card h100 --processes 8
    python scripts/plan.py --config config/stage_process.py:sdxl --card all
    python scripts/plan.py --config config/stage_process.py:tiny --card cpu
    python scripts/plan.py --config config/rig.py:sd14 --card 4090

Takes train.py's --config flags. The networks are built from their configurations alone and run
without numbers; of the model nothing is read but, where it is a folder, its configurations. Hours
are, call by call, the longer one of launching torch's operators and of computing at --share of the
card's data-sheet rate (srrl/measure/bill.py, Call.seconds); scripts/gpu_report.py measures yours.
"""

import argparse
import sys

from ml_collections import ConfigDict

from srrl.config import load_config
from srrl.errors import UserError, one_line_errors
from srrl.methods import METHODS
from srrl.prompts import check_files


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--card", default="h100", help="h200, a100, l40s, 4090, ..., all of them, or cpu"
    )
    parser.add_argument("--processes", type=int, default=1, help="GPUs that share the work")
    parser.add_argument("--fsdp", action="store_true", help="the UNet spread over them as well")
    parser.add_argument("--share", type=float, help="of the card's rate (0.35)")
    args, rest = parser.parse_known_args(argv)
    if args.processes < 1:
        raise UserError(f"--processes {args.processes}: at least 1")
    if args.share is not None and not 0 < args.share <= 1:
        raise UserError(f"--share {args.share}: above 0, up to 1")
    return args, rest


def main(argv: list[str]) -> None:
    args, rest = arguments(argv)
    config = load_config(rest, methods=[*METHODS])
    if config.method == "rig":
        return plan_rig(args, config)
    if config.method != "srrl":
        raise UserError(f"config.method={config.method!r}: plans are known of srrl and rig")
    check_files(config)

    from srrl.measure.bill import REWARD, SHARE
    from srrl.measure.biller import Biller
    from srrl.measure.cards import card_named
    from srrl.measure.fitting import CHECKPOINTING, largest, switches
    from srrl.measure.show import advice, cards_table, table

    card = None if args.card in ("cpu", "all") else card_named(args.card)
    share = args.share or SHARE
    biller = Biller(config, args.card != "cpu", args.processes, args.fsdp)
    bill = biller.bill()
    print(f"{config.run_name}: {config.pretrained.model}; computed, nothing was run")
    print(table(bill))
    if args.card == "all":
        print(f"at {share:.0%} of each card's rate or bound by launches, {args.processes} of them:")
        print(cards_table(biller, share))
    if card:
        hours = bill.hours(card, share, args.processes)
        cards = f"{args.processes} x {card.name}" if args.processes > 1 else card.name
        print(f"about {hours:.1f} h on {cards} at {share:.0%} of its rate or bound by launches")
        print(advice(biller, card))
        needed = switches(biller, card) or {}
        most = largest(biller, card, needed.get(CHECKPOINTING, config.train.gradient_checkpointing))
        most = {key: n for key, n in most.items() if not key.startswith(REWARD)}
        so = "at most fit with gradient checkpointing" if CHECKPOINTING in needed else "at most fit"
        print(f"{so}: " + ", ".join(f"{key} {n}" for key, n in most.items()))
    if bill.uncounted:
        print(f"not counted: reward {', '.join(bill.uncounted)}")


def plan_rig(args: argparse.Namespace, config: ConfigDict) -> None:
    """RL-RIG's parts, and what a picture takes."""
    if args.processes > 1 or args.fsdp or args.share:
        raise UserError("--processes, --fsdp and --share are of trainings: leave them out")
    from srrl.measure.cards import CARDS, card_named
    from srrl.measure.rig import page

    cards = [*CARDS.values()] if args.card == "all" else []
    if args.card not in ("all", "cpu"):
        cards = [card_named(args.card)]
    print(page(config, cards, args.card != "cpu"))


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
