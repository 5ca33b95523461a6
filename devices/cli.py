"""The command `skerry demo`: the whole story on real input."""

import contextlib
import signal
import sys
from pathlib import Path

import click
import msgspec

from devices.demo.options import DEVICES, DemoOptions, check_examples, smudged_devices
from devices.demo.story import Story
from devices.demo.telling import Teller
from devices.demo.world import World
from skerry.errors import SkerryError

__all__ = ["demo"]


@click.command()
@click.option("--seed", default=1, show_default=True, help="Seed of the traffic.")
@click.option(
    "--smudge",
    default="default",
    show_default=True,
    metavar="none|DEVICE,…",
    help="Whose lens is smudged.",
)
@click.option(
    "--release",
    type=click.Choice(["bad", "good"]),
    default="bad",
    show_default=True,
    help="The bad 1.2.0, or the good 1.2.1 in its place.",
)
@click.option("--traffic", type=click.Choice(["on", "off"]), default="on", show_default=True)
@click.option("--headless", is_flag=True, help="Leave at the end; exit 0 if every step happened.")
@click.option("--json", "as_json", is_flag=True, help="Print one summary as the last line.")
@click.option(
    "--examples",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("examples/digits"),
    show_default=True,
    help="The folder with the digits.",
)
def demo(
    seed: int,
    smudge: str,
    release: str,
    traffic: str,
    headless: bool,
    as_json: bool,
    examples: Path,
) -> None:
    """Run a fleet and twelve devices through a story on real handwritten digits."""
    options = DemoOptions(
        seed=seed,
        smudge=smudge,
        release="bad" if release == "bad" else "good",
        traffic="on" if traffic == "on" else "off",
        headless=headless,
        json=as_json,
        examples=examples.absolute(),
    )
    signal.signal(signal.SIGTERM, _end)
    try:
        smudged_devices(options.smudge)
        check_examples(options.examples)
        ok = _tell(options)
    except KeyboardInterrupt:
        sys.exit(130)
    except SkerryError as error:
        click.echo(f"skerry demo: {error}", err=True)
        sys.exit(error.exit_code)
    sys.exit(0 if ok else 1)


def _tell(options: DemoOptions) -> bool:
    teller = Teller()
    with World(DEVICES) as world:
        story = Story(options, world, teller)
        try:
            ok = story.run()
        except SkerryError as error:
            teller.bad(str(error))
            story.summary.seconds = round(teller.seconds, 1)
            ok = False
        verdict = "every step happened" if ok else "not every step happened"
        teller.say(f"{verdict}, {story.summary.seconds:.0f} s")
        if options.json:
            click.echo(msgspec.json.encode(story.summary).decode())
        if not options.headless:
            _stay(world, story, teller)
    return ok


def _stay(world: World, story: Story, teller: Teller) -> None:
    url, token = world.run_info.get("console_url"), world.data / "admin.token"
    if url is None:
        return
    teller.say(
        f"the console, with the traffic going on: {url}login?token={token.read_text().strip()}"
    )
    teller.say("Ctrl-C ends everything and leaves nothing behind")
    with contextlib.suppress(KeyboardInterrupt), story.traffic_going_on():
        world.wait()


def _end(_signal: int, _frame: object) -> None:
    """End as on Ctrl-C: whoever asks for the end, nothing stays behind."""
    raise KeyboardInterrupt
