"""A source tree of C files, made from a seed, that needs no header and no library.

Each module has functions of seeded integer arithmetic; `main.c` calls all of them and writes the
sum in decimal with a system call of its own. The generator computes the same sum, so that a
compiler, a disk or a network that changes one bit of any file is found out.
"""

import io
import random
import tarfile

MODULES = 12
FUNCTIONS = 16
_MASK = 0xFFFFFFFF

_MAIN_HEAD = """\
static long call(long number, long a, long b, long c) {
    long result;
    __asm__ volatile ("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c)
                      : "rcx", "r11", "memory");
    return result;
}
"""

_MAIN_TAIL = """\
void _start(void) {
    char text[12];
    int at = 12;
    unsigned sum = total();
    text[--at] = '\\n';
    do { text[--at] = '0' + sum % 10; sum = sum / 10; } while (sum);
    call(1, 1, (long)(text + at), 12 - at);
    call(60, 0, 0, 0);
}
"""


def _function(source: random.Random, name: str) -> tuple[str, int]:
    """One function's text and its value for the argument 1."""
    lines = [f"unsigned {name}(unsigned x) {{"]
    value = 1
    for step in range(source.randrange(8, 16)):
        a, b, shift = source.getrandbits(31), source.getrandbits(31), source.randrange(1, 16)
        lines.append(f"    x = (x ^ {a}u) * {b | 1}u + (x >> {shift});  /* {name} {step} */")
        value = ((value ^ a) * (b | 1) + (value >> shift)) & _MASK
    lines += ["    return x;", "}", ""]
    return "\n".join(lines), value


def generate(seed: int) -> tuple[dict[str, str], int]:
    """Files by name, and the number that the program prints."""
    source = random.Random(seed)
    files: dict[str, str] = {}
    declarations, calls, total = [], [], 0
    for module in range(MODULES):
        texts = []
        for index in range(FUNCTIONS):
            name = f"m{module}_f{index}"
            text, value = _function(source, name)
            texts.append(text)
            declarations.append(f"unsigned {name}(unsigned x);")
            calls.append(f"    sum += {name}(1);")
            total = (total + value) & _MASK
        files[f"m{module}.c"] = "\n".join(texts)
    body = ["static unsigned total(void) {", "    unsigned sum = 0;", *calls]
    body += ["    return sum;", "}", ""]
    files["main.c"] = "\n".join([*declarations, _MAIN_HEAD, *body, _MAIN_TAIL])
    files["EXPECTED"] = f"{total}\n"
    return files, total


def archive(seed: int) -> bytes:
    """The tree as a tar file, the same bytes for the same seed."""
    files, _ = generate(seed)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, text in sorted(files.items()):
            member = tarfile.TarInfo(f"tree/{name}")
            data = text.encode()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
