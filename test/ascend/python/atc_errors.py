"""How atc of each generation refuses: its codes, its words, and the form in which it prints them.

6.0 and 8.1   the table of an installed toolkit 8.1.RC1 (conf/error_manager/error_code.json). That
              of 6.0 was not seen; its known codes are the same. 8.x adds a process id and a date.
9.2           the registry of the open graph engine (hicann/ge, base/common/error_registry), in the
              form that users of 8.5 and later show.
What this stand-in refuses although the real one takes it is marked: beyond().
"""

import os
import sys
import time
from typing import Dict, NamedTuple, NoReturn, Optional, Tuple

SIX, EIGHT, NINE = 6, 8, 9
MARK = "[stand-in]"  # begins the words of what the real atc accepts


class Error(NamedTuple):
    """One kind of refusal."""

    code: str
    title: str  # only of 9.2
    text: str
    solution: str = ""


def generation() -> int:
    """Of the CANN that is played: 6 before 8.0, 8 for 8.0 to 8.3, 9 for later ones."""
    release = tuple(map(int, os.environ.get("STANDIN_CANN", "6.0.RC1").split(".")[:2]))
    if release < (8, 0):
        return SIX
    return EIGHT if release < (8, 5) else NINE


SHAPE_FORM = "input_name1:n1,c1,h1,w1;input_name2:n2,c2,h2,w2"
SHAPE_CURE = f"The valid format is {SHAPE_FORM}. Ensure that the shape values are integers."
LOG_CURE = "Select the value from debug, info, warning, error, and null."
PARSE_CURE = "Check that a matched Protobuf version is installed and try again with a valid file."
PACKAGE_CURE = "Check the version of the installation package and reinstall the package."
PLUGIN_CURE = (
    "1. If the operator is a custom operator, register related deliverables.\n"
    "2. If the operator is a built-in operator, install the package that supports this operator "
    "version."
)
NAMES_CURE = "Ensure that the operators in the graph have unique names."
SHAPE_TITLE = "Invalid_Argument_Tensor_Input_Shape"

# {kind: (up to 8.3, since 8.5)}; None: that generation does not refuse it
TABLE: Dict[str, Tuple[Optional[Error], Optional[Error]]] = {
    "value": (
        Error(
            "E10001",
            "",
            "Value [{}] for parameter [--{}] is invalid. Reason: {}",
            "Try again with a valid argument.",
        ),
        Error("E10001", "Invalid_Argument", "Value {} for parameter --{} is invalid. Reason: {}"),
    ),
    "required": (
        Error("E10007", "", "[--{}] is required. The value must be [{}]."),
        Error("E10007", "Invalid_Argument", "--{} is required. The value must be {}."),
    ),
    "empty": (
        Error("E10054", "", "The requied parameter [{}] for ATC is empty."),
        Error("E10054", "Invalid_Argument", "The required parameter {} for ATC is empty."),
    ),
    "log": (
        Error("E10010", "", "Value [{}] for parameter [--log] is invalid.", LOG_CURE),
        Error("E10010", "Invalid_Argument", "Value {} for parameter --log is invalid.", LOG_CURE),
    ),
    "shape": (
        Error(
            "E10002",
            "",
            "Value [{}] for parameter [--input_shape] is invalid. Reason: The shape must contain "
            "two parts: name and value",
            SHAPE_CURE,
        ),
        Error(
            "E10002",
            SHAPE_TITLE,
            "Value {} for parameter --input_shape is invalid. Reason: The shape must contain two "
            "parts: name and value.",
            SHAPE_CURE,
        ),
    ),
    "negative": (
        Error(
            "E10011",
            "",
            "Value [{}] for parameter [--input_shape] is invalid. Shape values must be positive "
            "integers.",
        ),
        Error(
            "E10011",
            SHAPE_TITLE,
            "Value {} for parameter --input_shape is invalid. Shape values must be positive "
            "integers.",
        ),
    ),
    "name": (
        Error("E10016", "", "Opname [{}] specified in [--{}] is not found in the model"),
        Error(
            "E10016",
            "Invalid_Argument_Operator_Name",
            "Op name {} specified in --{} is not found in the model.",
        ),
    ),
    "open": (
        Error(
            "E10001",
            "",
            "Value [-1] for parameter [{}] is invalid. Reason: maybe you should set input_shape to "
            "specify its shape",
        ),
        Error(
            "E10001",
            "Invalid_Argument",
            "Value NULL for parameter --input_shape is invalid. Reason: shapes of inputs contain "
            "-1 ({})",
        ),
    ),
    "dimensions": (
        Error("E10001", "", "Value [{}] for parameter [--input_shape] is invalid."),
        Error("E19999", "Inner_Error", "{} has too few dimensions for its consumer."),
    ),
    "operator": (
        Error("E19010", "", "No parser is registered for Op [{}, optype [{}]].", PACKAGE_CURE),
        Error(
            "E13010",
            "Not_Supported_Operator",
            "No operator plugin is registered for Op: {}, optype: {}.",
            PLUGIN_CURE,
        ),
    ),
    "names": (
        Error("E19009", "", "Op [{}] has a name conflict in the graph.", NAMES_CURE),
        Error(
            "E13009",
            "Invalid_Argument_Operator_Name",
            "Operator {} already exists in the graph. Ensure that operator names are unique.",
            NAMES_CURE,
        ),
    ),
    "opsets": (
        Error(
            "E16005", "", "The model has [{}] [--domain_version] fields, but only one is allowed."
        ),
        None,
    ),
    "axis": (None, Error("EZ9999", "Inner_Error", "Op {} needs the attribute axis.")),
    "parse": (
        Error("E19005", "", "Failed to parse file [{}].", PARSE_CURE),
        Error("E13005", "File_Operation_Error_Parse", "Failed to parse file {}.", PARSE_CURE),
    ),
    "aipp syntax": (
        Error(
            "E19018",
            "",
            "Failed to parse file [{}] through [google::protobuf::TextFormat::Parse]. {}",
        ),
        Error("E13005", "File_Operation_Error_Parse", "Failed to parse file {}. {}", PARSE_CURE),
    ),
    "aipp": (
        Error("E10052", "", "AIPP configuration is invalid. Reason: {}: {}"),
        Error("E10052", "Invalid_Argument", "AIPP configuration is invalid. Reason: {}: {}"),
    ),
    "aipp float16": (
        Error(
            "E10034", "", "Nodes (for example, [{}]) connected to AIPP must not be of type fp16."
        ),
        Error(
            "E10034",
            "Invalid_Argument",
            "Nodes (for example, {}) connected to AIPP must not be of type FP16.",
        ),
    ),
    "compile": (
        Error("E40021", "", "Failed to compile Op [{}]. (oppath: [{}], optype: [{}])"),
        Error("E40021", "Compilation_Error", "Failed to compile Op {}. (oppath: {}, optype: {})"),
    ),
}


def write_log(text: str) -> None:
    """Add to the process log, where CANN keeps it."""
    logs = os.environ.get("ASCEND_PROCESS_LOG_PATH", os.path.expanduser("~/ascend/log"))
    folder = os.path.join(logs, "debug", "plog")
    os.makedirs(folder, mode=0o750, exist_ok=True)
    with open(os.path.join(folder, f"plog-{os.getpid()}.log"), "a", encoding="utf-8") as file:
        file.write(text + "\n")


def end(message: str) -> NoReturn:
    """End as atc ends: the reason on stdout and in its log, exit status 255."""
    print("ATC run failed, Please check the detail log, Try 'atc --help' for more information")
    print(message, flush=True)
    write_log(f"[ERROR] GE({os.getpid()},atc.bin): {message}")
    sys.exit(255)


def form(error: Error, *values: object) -> str:
    """An error as the played generation prints it."""
    text = error.text.format(*values)
    when = f"[PID: {os.getpid()}] {time.strftime('%Y-%m-%d-%H:%M:%S')}.000.000"
    lines = [f"{error.code}: {text}"]
    if generation() == EIGHT:
        lines = [f"{error.code}: {when} {text}"]
    elif generation() == NINE:
        lines = [f"{when} {error.title}({error.code}): {text}"]
    if error.solution:
        lines.append(f"        Solution: {error.solution}")
    return "\n".join(lines)


def refuses(kind: str) -> bool:
    """Whether the played generation refuses this kind of thing."""
    old, new = TABLE[kind]
    return (new if generation() == NINE else old) is not None


def fail(kind: str, *values: object) -> NoReturn:
    """End with the error of this kind in the played generation."""
    old, new = TABLE[kind]
    error = new if generation() == NINE else old
    assert error is not None, f"this generation does not refuse: {kind}"
    end(form(error, *values))


def beyond(reason: str) -> NoReturn:
    """Refuse what the real atc takes without a word, because it is never what a user wants."""
    end(f"{MARK} {reason} (the real atc takes this)")
