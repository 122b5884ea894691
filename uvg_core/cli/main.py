"""The command line: generate, caption, joint, rank, inspect, convert, check, synthesise, train, demo.

    python -m uvg_core generate "a red circle moves left slowly on a navy background" -o clip.mp4
    python -m uvg_core caption clip.mp4 other.mov folder/
    python -m uvg_core joint "a green square" -o both.mp4
    python -m uvg_core rank clip.mp4 "a red circle" "a blue circle"

Results go to the standard output, notes and progress to the standard error. Errors that the user can put right are one
message and exit code 1.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import LoraChoice, convert, inspect_checkpoint
from ..checkpoint.config import say_unchecked
from ..config import END_OF_TEXT, LATENT_SPACES, SOURCES, TEXT_FLOWS, TEXT_STATES, TIME_ROUNDING, ModelConfig
from ..errors import UniViGUError
from ..io import require_folder, require_others, write_text
from ..media.vae import read_latent, write_latent
from ..pipeline import pipeline as pipes
from ..pipeline.components import OutOfMemory
from ..pipeline.folders import caption_folder
from ..pipeline.locate import Places, find_network_file
from ..pipeline.pipeline import EMBEDDED_MODEL, Pipeline, given
from ..progress import Bars, bars
from ..sampling import Ranking, Sampling, Size
from ..sampling.video_cache import CachePolicy
from ..training import run as training
from . import synthesise
from .output import joint_sheet, say, show_clip

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_OVERRIDES = ("latent_space", "text_states", "text_flow", "source", "num_heads")


def _pipeline(args: argparse.Namespace, shown: Bars) -> Pipeline:
    model = args.model or EMBEDDED_MODEL
    if args.comfyui is not None and (args.model is None or not args.model.exists()):
        model = find_network_file(args.comfyui, args.model)
        say(f"network: {model}")
    pipe = Pipeline(
        model,
        Places(args.wan, args.comfyui, args.text_encoder, args.vae, args.tokenizer),
        device=args.device,
        dtype=DTYPES.get(args.dtype),
        null_embedding=getattr(args, "null_embedding", None),
        overrides={name: getattr(args, name) for name in _OVERRIDES},
        progress=shown,
        loras=args.lora,
    )
    for lora in pipe.loras:
        shown.close()
        say(str(lora))
    if not pipe.config.run.checked and args.command != "check":
        say_unchecked(str(model), pipe.config.model.latent_space, pipe.components.text_states)
    return pipe


@contextmanager
def _sampled_kept(pipe: Pipeline, out: Path, shown: Bars) -> Iterator[None]:
    """Whatever keeps a sampled clip from being decoded and written: its latent is kept beside ``out``, and its text."""
    try:
        yield
    except BaseException:
        if pipe.sampled is not None:
            shown.close()
            path = out.with_suffix(".latent.safetensors")
            latent, text = pipe.sampled.latent, pipe.sampled.text
            _kept(
                lambda: write_latent(path, latent, model=pipe.components.path.name),
                f'{path}: the sampled latent. To decode it: generate --from-latent "{path}" -o "{out}", with the same '
                "--model and files beside it (and --device cpu if memory does not suffice)",
            )
            if text:
                words = out.with_suffix(".txt")
                _kept(lambda: write_text(words, text + "\n"), f"{words}: its caption")
        raise


def _kept(write: Callable[[], None], told: str) -> None:
    """Save one of several things from a run that failed: whether that works is said, and hinders nothing else."""
    try:
        write()
        say(told)
    except UniViGUError as error:
        say(f"error: {error}")


def _sampling(args: argparse.Namespace) -> Sampling:
    names = {field.name for field in fields(Sampling)}
    return Sampling(**{name: getattr(args, name) for name in names if getattr(args, name, None) is not None})


def _size(args: argparse.Namespace) -> Size:
    return Size(args.height, args.width, args.frames)


def _video_cache(text: str) -> str:
    """An argparse type: a setting that ``CachePolicy`` knows."""
    try:
        CachePolicy.of(text, ModelConfig())
    except UniViGUError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _number(kind: type, lowest: float | None, highest: float | None = None) -> Callable[[str], Any]:
    """An argparse type: a finite number of ``kind`` within bounds."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' if kind is int else ''}number")
        if (lowest is not None and value < lowest) or (highest is not None and value > highest):
            bounds = f"at least {lowest:g}" if highest is None else f"between {lowest:g} and {highest:g}"
            raise argparse.ArgumentTypeError(f"{text} is out of range; expected {bounds}")
        return value

    return parse


COUNT = _number(int, 1, 100_000)
PIXELS = _number(int, 16, 8192)
SEED = _number(int, 0, 2**63 - 1)
ABOVE_ZERO = _number(float, 1e-6)


def _path(text: str) -> Path:
    """An argparse type: a path that is not empty (an unset shell variable would mean the working directory)."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def _lora(text: str) -> LoraChoice:
    """An argparse type: a LoRA file and its strengths."""
    try:
        return LoraChoice.of(text)
    except UniViGUError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


LORA: dict[str, Any] = {"type": _lora, "action": "append", "default": [], "metavar": "FILE[:VIDEO[:TEXT]]"}


def _target(*suffixes: str) -> Callable[[str], Path]:
    """An argparse type: a file to write, of a kind that can be written. Known now, not after the run."""

    def parse(text: str) -> Path:
        path = _path(text)
        if path.suffix.lower() not in suffixes:
            raise argparse.ArgumentTypeError(f"{text!r} does not end in {' or '.join(suffixes)}")
        return path

    return parse


VIDEO_FILE, PICTURE = _target(".mp4"), _target(".png", ".jpg", ".webp")


def _steps_on(shown: Bars, what: str, words: Callable[[Tensor], str] | None = None) -> pipes.Callback:
    return lambda step, state: shown(what, step, state.steps, words(state.tokens[0]) if words else "")


def run_generate(args: argparse.Namespace, shown: Bars) -> None:
    require_folder(args.out)
    pipe = _pipeline(args, shown)
    fps = given(args.fps, pipe.config.run.fps)
    if args.from_latent is not None:
        latent = read_latent(args.from_latent, model=pipe.components.path.name)
        show_clip(args.out, pipe.decode_clips([latent])[0], fps, args.scale)
        return
    with _sampled_kept(pipe, args.out, shown):
        pixels = pipe.generate(
            args.prompt,
            text="" if args.no_text_stream else args.text,
            negative=args.negative,
            size=_size(args),
            sampling=_sampling(args),
            callback=_steps_on(shown, "generating"),
        )
        show_clip(args.out, pixels, fps, args.scale)


def run_caption(args: argparse.Namespace, shown: Bars) -> int:
    pipe, sampling, size = _pipeline(args, shown), _sampling(args), _size(args)
    failed = 0

    def describe(path: Path) -> str:
        latent, note = pipe.latent_of(path, size)
        shown.close()
        say(note)
        watch = _steps_on(shown, "writing the caption", pipe.tokenizer.text)
        return pipe.caption(latent, hint=args.hint, template=args.template, sampling=sampling, callback=watch)

    def announce(index: int, total: int, clip: Path) -> None:
        say(f"[{index + 1}/{total}] {clip}")

    for path in args.clips:
        try:
            if path.is_dir():
                report = caption_folder(
                    path,
                    describe,
                    overwrite=args.overwrite,
                    prefix=args.prefix,
                    recursive=not args.no_recursive,
                    on_clip=announce,
                )
                print(report)
                failed += len(report.failed)
            else:
                name = "" if len(args.clips) == 1 else f"{path}\t"
                print(f"{name}{args.prefix}{describe(path)}")
        except UniViGUError as error:
            shown.close()
            say(f"error: {error}")
            failed += 1
    return 1 if failed else 0


def run_joint(args: argparse.Namespace, shown: Bars) -> None:
    sheet = args.sheet
    for path in (args.out, sheet or args.out):
        require_folder(path)
    pipe = _pipeline(args, shown)
    with _sampled_kept(pipe, args.out, shown):
        pixels, text, trace = pipe.joint(
            args.prompt,
            negative=args.negative,
            size=_size(args),
            sampling=_sampling(args),
            callback=_steps_on(shown, "generating both", pipe.tokenizer.text),
            record=8 if sheet else 0,
        )
        show_clip(args.out, pixels, given(args.fps, pipe.config.run.fps), args.scale)
    write_text(args.out.with_suffix(".txt"), text + "\n")
    if sheet:
        joint_sheet(sheet, args.prompt, text, pixels, trace)
        say(f"{sheet}: how clip and caption took shape")
    print(text)


def run_rank(args: argparse.Namespace, shown: Bars) -> None:
    texts = list(args.texts)
    if args.texts_file:
        try:
            texts += [line.strip() for line in args.texts_file.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UniViGUError(
                f"{args.texts_file}: cannot be read ({error}); pass a text file in UTF-8 with one candidate a line"
            ) from None
    if not texts:
        raise UniViGUError("there is no text to rank; write candidates after the clip, or pass --texts-file FILE")
    pipe = _pipeline(args, shown)
    latent, note = pipe.latent_of(args.clip, _size(args))
    shown.close()
    say(note)
    watch: Callable[[int, int], object] = lambda done, total: shown("ranking", done, total)  # noqa: E731
    scores = pipe.rank(latent, texts, Ranking(samples=args.samples, seed=args.seed), callback=watch)
    share = scores.double().softmax(0)
    unit = "nats" if pipe.config.model.text_flow == "discrete" else "squared error"
    for i in scores.argsort(descending=True).tolist():
        print(f"{share[i]:7.1%}  {scores[i]:9.2f} {unit}  {texts[i]}")


def run_inspect(args: argparse.Namespace, _: Bars) -> None:
    for path in args.files:
        print(inspect_checkpoint(path))


def run_convert(args: argparse.Namespace, shown: Bars) -> None:
    merged = convert(
        args.input,
        args.out,
        dtype=args.dtype,
        on_progress=lambda done, total: shown("converting", done, total),
        text_flow=args.text_flow,
        source=args.source,
        num_heads=args.num_heads,
        latent_space=args.latent_space,
        time_rounding=args.time_rounding,
        run={name: value for name in ("text_states", "end_of_text") if (value := getattr(args, name)) is not None},
        loras=args.lora,
    )
    for lora in merged:
        say(str(lora))
    say(f"{args.out}: {args.out.stat().st_size / 1e9:.2f} GB")


def run_check(args: argparse.Namespace, shown: Bars) -> None:
    from ..pipeline.check import Check

    for path in filter(None, (args.write, args.json)):
        require_folder(path)
    check = Check(_pipeline(args, shown), _size(args))
    for line in check.lines():
        shown.close()
        print(line, flush=True)
    if args.write:
        check.write(args.write, args.dtype, lambda done, total: shown("writing", done, total))
        shown.close()
        say(f"{args.write}: {args.write.stat().st_size / 1e9:.2f} GB, with what was found")
    if args.json:
        write_text(args.json, json.dumps(check.to_json(), indent=1, ensure_ascii=False) + "\n")


def run_train(args: argparse.Namespace, shown: Bars) -> int:
    return training.run(args, shown, say)


def run_synthesise(args: argparse.Namespace, shown: Bars) -> int:
    watch = _steps_on(shown, "generating")
    return synthesise.run(args, _pipeline(args, shown), _size(args), _sampling(args), shown, watch)


def run_demo(args: argparse.Namespace, shown: Bars) -> None:
    from .demo import run_demo as run

    run(_pipeline(args, shown), args.out, shown)


class _Parser(argparse.ArgumentParser):
    """Errors of usage with the exit code of other errors of the user, and help where it was misspelt."""

    def error(self, message: str) -> Any:
        self.print_usage(sys.stderr)
        raise SystemExit(f"error: {message}\nSee {self.prog} --help")


def _arguments() -> argparse.ArgumentParser:
    model, flows, sampler, video, size, text, null = (_Parser(add_help=False) for _ in range(7))
    group = model.add_argument_group("model")
    group.add_argument(
        "--model",
        type=_path,
        help="checkpoint (default: the embedded model; with --comfyui, the one that lies there)",
    )
    group.add_argument(
        "--wan",
        type=_path,
        metavar="DIR",
        help="Wan2.1 folder, in diffusers layout or Wan's own: VAE, text encoder and tokenizer for --model",
    )
    group.add_argument(
        "--comfyui",
        type=_path,
        metavar="FOLDER",
        help="ComfyUI folder: what --model lacks is found in its models (and extra_model_paths.yaml)",
    )
    group.add_argument(
        "--text-encoder",
        type=_path,
        metavar="FILE",
        help="such as umt5_xxl_fp8_e4m3fn_scaled.safetensors; the tokenizer lies inside",
    )
    group.add_argument("--vae", type=_path, metavar="FILE", help="such as wan_2.1_vae.safetensors")
    group.add_argument(
        "--tokenizer", type=_path, metavar="FILE", help="spiece.model, for text encoders without one inside"
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the network (default: float32 for small ones, bf16 for large ones on a card, else as stored)",
    )
    group.add_argument("--latent-space", choices=LATENT_SPACES, help="default: what the checkpoint says")
    group.add_argument(
        "--lora",
        **LORA,
        help="a LoRA, with a strength for the video half and one for the text half (default: 1; one number is for "
        "both); several times for several",
    )
    group.add_argument(
        "--text-states",
        choices=TEXT_STATES,
        help="how the text encoder is run (default: what the checkpoint says, else umT5); the release's way differs",
    )
    group = flows.add_argument_group("what the checkpoint does not say itself")
    group.add_argument("--text-flow", choices=TEXT_FLOWS)
    group.add_argument("--source", choices=SOURCES, help="of the discrete text flow")
    group.add_argument("--num-heads", type=COUNT)

    group = sampler.add_argument_group("sampling (defaults: the checkpoint's own recipe)")
    group.add_argument("--steps", type=COUNT)
    group.add_argument("--seed", type=SEED, default=0)
    group = video.add_argument_group("video")
    group.add_argument("--shift", type=ABOVE_ZERO, help="more steps at high noise; 1 is none")
    group.add_argument(
        "--guidance", dest="guidance_scale", type=_number(float, -1000, 1000), help="1 turns guidance off"
    )
    group.add_argument(
        "--guidance-end",
        type=_number(float, 0, 1),
        default=1.0,
        help="the share of the steps that are guided; the others take half the time",
    )
    group.add_argument("--solver", choices=("euler", "heun"), default="euler")
    group.add_argument("--negative", default="", help="what guidance leads away from (default: the empty prompt)")
    null.add_argument_group("video").add_argument(
        "--null-embedding",
        type=_path,
        metavar="FILE",
        help="a prompt condition to guide away from in place of the encoded empty prompt, such as the release's "
        "empty_context_t5_emb.pt",
    )
    group.add_argument("--fps", type=_number(float, 0.1, 240), help="of the written file")
    group.add_argument(
        "--scale", type=_number(int, 1, 64), help="repeat every pixel N times in the file (default: only small clips)"
    )
    group = size.add_argument_group("size (defaults: what the checkpoint was trained at)")
    for name in ("--height", "--width", "--frames"):
        group.add_argument(name, type=COUNT if name == "--frames" else PIXELS)
    group = text.add_argument_group("text")
    group.add_argument(
        "--temperature",
        type=_number(float, 0),
        help="0 always takes the most likely token (default: the checkpoint's for captions, 1 for joint)",
    )
    group.add_argument("--top-p", type=_number(float, 1e-6, 1), default=1.0)
    group.add_argument("--length", dest="text_length", type=_number(int, 1, 4096), help="tokens of the text stream")

    parser = _Parser(
        prog="python -m uvg_core", description="Uni-ViGU: videos from text, text from videos, both at once."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(
        name: str, run: Callable[[argparse.Namespace, Bars], Any], summary: str, parents: Sequence[_Parser]
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary, parents=list(parents))
        made.set_defaults(run=run)
        return made

    sub = command("generate", run_generate, "a prompt gives an mp4", (model, flows, sampler, video, size, null))
    sub.add_argument("prompt", nargs="?")
    sub.add_argument("-o", "--out", type=VIDEO_FILE, default=Path("clip.mp4"))
    sub.add_argument(
        "--from-latent",
        type=_path,
        metavar="FILE",
        help="decode a latent that an earlier run kept, instead of a prompt",
    )
    sub.add_argument("--text", help="another text for the text stream (default: the prompt)")
    sub.add_argument("--no-text-stream", action="store_true", help="leave the text stream empty: plain Wan")

    sub = command(
        "caption",
        run_caption,
        "clips give captions; a folder gets a .txt beside each clip",
        (model, flows, sampler, size, text),
    )
    sub.add_argument("clips", type=_path, nargs="+", metavar="CLIP|FOLDER")
    sub.add_argument("--hint", default="", help="a prompt to look at beside the clip")
    sub.add_argument("--template", default="", help="text with blanks to fill in, e.g. 'a red ___ moves ___'")
    sub.add_argument(
        "--text-update", choices=("bridge", "euler"), default="bridge", help="exact jump process, or the release's rule"
    )
    sub.add_argument(
        "--video-cache",
        type=_video_cache,
        default="auto",
        help="how often steps look at the clip: off (each), refresh=K (every K-th), static (once); auto: once where "
        "that changes nothing, else each",
    )
    sub.add_argument(
        "--stop-when-stable",
        type=_number(int, 0, 1000),
        default=0,
        help="stop as soon as this many steps in a row draw the same words (0: take all steps)",
    )
    sub.add_argument("--prefix", default="", help="put in front of every caption (a trigger word)")
    sub.add_argument("--overwrite", action="store_true", help="write captions that exist already anew")
    sub.add_argument("--no-recursive", action="store_true", help="leave subfolders out")

    sub = command(
        "joint",
        run_joint,
        "a prompt gives an mp4 and its caption at once",
        (model, flows, sampler, video, size, null, text),
    )
    sub.add_argument("prompt")
    sub.add_argument(
        "-o", "--out", type=VIDEO_FILE, default=Path("joint.mp4"), help="the caption goes beside it as .txt"
    )
    sub.add_argument("--sheet", type=PICTURE, help="also draw a contact sheet (.png) of both streams taking shape")
    sub.add_argument(
        "--text-update",
        choices=("bridge", "euler", "release"),
        default="bridge",
        help="exact jump process, its Euler form, or the release's redraw rule",
    )

    sub = command("rank", run_rank, "which text fits a clip best", (model, flows, size))
    sub.add_argument("clip", type=_path)
    sub.add_argument("texts", nargs="*")
    sub.add_argument("--texts-file", type=_path, help="one candidate a line")
    sub.add_argument("--samples", type=COUNT, default=16, help="Monte-Carlo draws")
    sub.add_argument("--seed", type=SEED, default=0)

    sub = command("inspect", run_inspect, "say what a checkpoint is", ())
    sub.add_argument("files", type=_path, nargs="+")

    sub = command("convert", run_convert, "any readable Uni-ViGU checkpoint to native safetensors", (flows,))
    sub.add_argument("input", type=_path)
    sub.add_argument("out", type=_target(".safetensors"))
    sub.add_argument("--dtype", choices=("bf16", "fp16", "fp32", "fp8"), help="default: as stored")
    sub.add_argument("--latent-space", choices=LATENT_SPACES, help="write this into the file")
    sub.add_argument("--text-states", choices=TEXT_STATES, help="write this into the file")
    sub.add_argument(
        "--time-rounding", choices=TIME_ROUNDING, help="write into the file that its clocks are rounded, or are not"
    )
    sub.add_argument(
        "--end-of-text",
        choices=END_OF_TEXT,
        help="write into the file how generated text ends: at the first end token, or after the last word",
    )
    sub.add_argument("--lora", **LORA, help="merge a LoRA into the weights; several times for several")

    sub = command(
        "check",
        run_check,
        "does a checkpoint work, and how is it to be run: its own losses on real clips decide",
        (model, flows, size, null),
    )
    sub.add_argument(
        "--write",
        type=_target(".safetensors"),
        metavar="FILE",
        help="also write the checkpoint as a native file that says what was found; in --dtype, else as stored",
    )
    sub.add_argument("--json", type=_target(".json"), metavar="FILE", help="also write the report as JSON")

    sub = command(
        "synthesise",
        run_synthesise,
        "prompts give a data set: clips, prompts, and detailed captions by a language model",
        (model, flows, sampler, video, size, null),
    )
    synthesise.add_arguments(sub, path=_path, number=_number)

    sub = command("train", run_train, "train in stages: generate, recall, refine", ())
    training.add_arguments(sub)

    sub = command("demo", run_demo, "all three jobs on the embedded model, in under a minute", (model, flows))
    sub.add_argument("--out", type=_path, default=Path("out"), help="folder for the results")
    return parser


def _quiet_libraries() -> None:
    """Libraries print notes about their own options; users of a command want to see ours."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("uvg_core.checkpoint").setLevel(logging.INFO)
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


WRITTEN = ("out", "write", "json", "sheet")
READ = ("model", "input", "text_encoder", "vae", "tokenizer", "null_embedding", "from_latent", "clip", "texts_file")


def _require_other_files(args: argparse.Namespace) -> None:
    """Raise UniViGUError where a run would write onto a file that it reads."""
    read = [path for name in READ if isinstance(path := getattr(args, name, None), Path)]
    read += [lora.path for lora in getattr(args, "lora", ())]
    for name in WRITTEN:
        if isinstance(target := getattr(args, name, None), Path) and not target.is_dir():
            require_others(target, read)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends a run as an exception does, so that nothing half-written stays; training has its own way."""

    def end(*_: object) -> None:
        raise SystemExit(143)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that cannot show a caption's letters must not end a run
            stream.reconfigure(errors="backslashreplace")
    parser = _arguments()
    args = parser.parse_args(argv)
    if args.command == "generate" and (args.prompt is None) == (args.from_latent is None):
        parser.error("generate: pass a prompt or --from-latent FILE, and not both")
    _quiet_libraries()
    with bars() as shown, _ended_by_sigterm():
        try:
            _require_other_files(args)
            code = int(args.run(args, shown) or 0)
            sys.stdout.flush()
            return code
        except BrokenPipeError:  # `... | head` has read enough; what is left to write at the exit goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except UniViGUError as error:
            shown.close()
            say(f"error: {error}")
            return 1
        except OutOfMemory as error:
            shown.close()
            say(f"error: {error}")
            return 1
        except torch.OutOfMemoryError as error:
            shown.close()
            say(
                f"error: out of memory ({str(error).splitlines()[0][:120]}); use a smaller --height or --width, "
                "fewer --frames, a checkpoint converted to bf16, or close other programs on the device"
            )
            return 1
        except (OSError, MemoryError, RuntimeError) as error:
            # Whatever a system or a library refuses that no check of ours foresaw.
            shown.close()
            if os.environ.get("UVG_DEBUG"):
                raise
            reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
            say(f"error: {args.command} failed: {reason} (UVG_DEBUG=1 shows where)")
            return 1
        except KeyboardInterrupt:
            shown.close()
            say("stopped; nothing half-written was left")
            return 130
