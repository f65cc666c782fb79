"""Hand this Python's program to a process that has imported the slow packages; see the package's docstring.

Python imports this before the program. It returns, and the program starts as usual, unless the environment names the server's address and
the command line is `python [-u] SCRIPT ...`, or `python [-u] -m MODULE ...` with one of MODULES.
"""

import os
import sys

MODULES = {"clusterq_gen", "clusterq_finetune", "torch.distributed.run"}


def hand_over() -> None:
    address = os.environ.get("CLUSTERQ_PRELOADED")
    words = sys.orig_argv[1:]
    unbuffered = words[:1] == ["-u"]
    words = words[unbuffered:]
    module = words[:1] == ["-m"]
    if not address or not words or (words[1] not in MODULES if module else words[0].startswith("-")):
        return
    import json
    import signal
    import socket

    request = {
        "module": module,
        "words": words[module:],
        "path": sys.path,
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "unbuffered": unbuffered or bool(os.environ.get("PYTHONUNBUFFERED")),
        "interrupts": signal.getsignal(signal.SIGINT) is not signal.SIG_IGN,
    }
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(address)
    body = json.dumps(request).encode()
    socket.send_fds(connection, [len(body).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(body)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: connection.send(bytes([number])))
    answer = b""
    while len(answer) < 4:
        part = connection.recv(4 - len(answer))
        if not part:
            os.write(2, b"the process with the packages has ended\n")
            os._exit(70)
        answer += part
    code = int.from_bytes(answer, "big", signed=True)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


hand_over()
