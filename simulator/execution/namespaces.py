"""Network namespaces without a name, and what the kernel must have for a network of them.

A namespace lives as long as a process is in it or a descriptor of it is open. Nothing here gives one a name,
so the kernel itself takes all of them down when their last process has ended, however that came about.

Entering a namespace concerns the calling thread and the threads that it starts from then on. What is to
happen inside is done in a thread that ends afterwards, so that the caller stays where it is.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import reduction
from pathlib import Path
from typing import Any, TypeVar

from simulator.parts import BadInput

T = TypeVar("T")

FEATURES = {
    "veth": "CONFIG_VETH",
    "tbf": "CONFIG_NET_SCH_TBF",
    "htb": "CONFIG_NET_SCH_HTB and CONFIG_NET_CLS_U32",
    "policy routing": "CONFIG_IP_MULTIPLE_TABLES",
    "ifb": "CONFIG_IFB, CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_U32 and CONFIG_NET_ACT_MIRRED",
    "netem": "CONFIG_NET_SCH_NETEM",
}
"""What an emulated network may need of the kernel, with the options that a kernel has it by."""

_CLONE_NEWNET = 0x40000000
_ROOT = 0xFFFFFFFF  # TC_H_ROOT
_ANY_RATE = 2**32 - 1
_ANY_BURST = 2**20
_ANY_PACKETS = 10_000
"""As good as no limit, where senders' buffers bound what waits."""


class Namespace:
    """A network namespace, held by a descriptor; it can be sent to a process that is being started.

    Parameters
    ----------
    descriptor
        Of the namespace; it is closed with this object.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.descriptor),)

    @classmethod
    def new(cls) -> Namespace:
        """Make a namespace and move the calling thread into it.

        Raises
        ------
        OSError
            The kernel refuses.
        """
        _system("unshare", _CLONE_NEWNET)
        return cls(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    def enter(self) -> None:
        """Move the calling thread into this namespace."""
        _system("setns", self.descriptor, _CLONE_NEWNET)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.descriptor)


def _received(duplicate: Any) -> Namespace:
    return Namespace(duplicate.detach())


def _system(name: str, *arguments: int) -> None:
    """Call a function of the C library; Python itself has these from 3.12 on."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def apart(work: Callable[[], T]) -> T:
    """Return what ``work`` returns, called in a thread of its own that may change its namespace."""
    values: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            values.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name="namespaces")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return values[0]


@contextmanager
def netlink() -> Iterator[Any]:
    """Give pyroute2's view of the network of the calling thread's namespace."""
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        yield ip


def check_rights() -> None:
    """Refuse where namespaces cannot be made or configured at all.

    Raises
    ------
    BadInput
        It says what is missing: Linux, root, or pyroute2.
    """
    if not Path("/proc/self/ns/net").exists():
        raise BadInput("", "an emulated network needs Linux with network namespaces (CONFIG_NET_NS)")
    if os.geteuid() != 0:
        raise BadInput(
            "",
            "an emulated network needs root, because it makes network namespaces, but this process runs "
            f"as user {os.geteuid()}; run it with sudo",
        )
    if importlib.util.find_spec("pyroute2") is None:
        raise BadInput("", "an emulated network needs pyroute2; install it with pip install pyroute2")


def missing_features() -> frozenset[str]:
    """Return which of :data:`FEATURES` this kernel lacks, tried in a namespace that is gone afterwards.

    Raises
    ------
    BadInput
        Not even a namespace can be made, or its settings cannot be written.
    """
    return apart(_missing_features)


def _missing_features() -> frozenset[str]:
    try:
        Namespace.new().close()
    except OSError as error:
        raise BadInput("", f"an emulated network needs network namespaces, but {error.strerror}") from None
    if not os.access("/proc/sys/net/ipv4/ip_forward", os.W_OK):
        raise BadInput("", "an emulated network needs to write /proc/sys/net, which is read-only here")
    with netlink() as ip:
        if not _works(lambda: ip.link("add", ifname="probe", kind="veth", peer={"ifname": "peer"})):
            return frozenset(FEATURES)
        [index] = ip.link_lookup(ifname="probe")
        [peer] = ip.link_lookup(ifname="peer")
        [loopback] = ip.link_lookup(ifname="lo")
        works = {
            "veth": True,
            "tbf": _works(
                lambda: ip.tc("add", "tbf", index=index, handle="1:", rate=10**6, burst=10**5, latency=5000)
            ),
            "netem": _works(lambda: ip.tc("add", "netem", index=peer, handle="1:", delay=1000)),
            "htb": _works(lambda: acknowledgements_first(ip, loopback, _ROOT, "2:")),
            "policy routing": _works(
                lambda: ip.rule("add", src="10.0.0.1", src_len=32, table=100, priority=100)
            ),
            "ifb": _works(lambda: redirect(ip, index, "half")),
        }
    return frozenset(feature for feature, there in works.items() if not there)


def _works(attempt: Callable[[], object]) -> bool:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        attempt()
    except NetlinkError as error:
        if error.code in (errno.EPERM, errno.EACCES):
            raise BadInput(
                "", "an emulated network needs root with the capability CAP_NET_ADMIN, which is missing here"
            ) from None
        return False
    return True


def acknowledgements_first(ip: Any, index: int, parent: str | int, handle: str) -> None:
    """Let TCP's bare acknowledgements pass what else waits before an interface.

    Parameters
    ----------
    ip
        Of the namespace.
    index
        The interface's number.
    parent
        The queue that sets the rate; what is put into it here has none.
    handle
        What the two queues together are called.
    """
    first, others = 1, 2
    ip.tc("add", "htb", index=index, parent=parent, handle=handle, default=others)
    for queue in (first, others):
        ip.tc(
            "add-class",
            "htb",
            index=index,
            parent=handle,
            handle=f"{handle}{queue}",
            prio=queue,
            rate=_ANY_RATE,
            burst=_ANY_BURST,
            cburst=_ANY_BURST,
            quantum=_ANY_BURST,
        )
        ip.tc("add", "pfifo", index=index, parent=f"{handle}{queue}", limit=_ANY_PACKETS)
    length = "0x0034/0xffff+2"  # of headers with a time stamp
    acknowledges = "0x10/0xff+33"  # and nothing else
    ip.tc(
        "add-filter",
        "u32",
        index=index,
        parent=handle,
        protocol=0x0800,  # IPv4
        target=f"{handle}{first}",
        keys=[length, acknowledges],
    )


def redirect(ip: Any, index: int, name: str) -> int:
    """Send all that enters or leaves an interface through one new interface, and return the number of that.

    Parameters
    ----------
    ip
        Of the namespace.
    index
        The interface's number.
    name
        Of the new interface, whose queue both directions share.
    """
    ip.link("add", ifname=name, kind="ifb")
    [shared] = ip.link_lookup(ifname=name)
    ip.tc("add", "clsact", index=index)
    everything = 0x0003  # ETH_P_ALL
    for hook in (0xFFFFFFF2, 0xFFFFFFF3):  # TC_H_MIN_INGRESS and TC_H_MIN_EGRESS of the clsact queue
        action = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": shared}
        ip.tc(
            "add-filter",
            "u32",
            index=index,
            parent=hook,
            protocol=everything,
            target=0x10000,
            keys=["0x0/0x0+0"],
            action=[action],
        )
    return int(shared)
