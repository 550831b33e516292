"""Python's side of the rows of `shared_state`: the operations of `multiprocessing`, as its documentation writes them.

    python3 python_peer.py ROW

prints `ready`, then reads numbers from its input, one a line: does that many operations for each and prints how many nanoseconds they took.
Ends with its input. A row that Python has no operation for prints `none`.
"""

import multiprocessing
import os
import sys
import time
from multiprocessing import managers, shared_memory

# The fastest way to start, and what Python used for years: it only matters before the first round.
mp = multiprocessing.get_context("fork")
CPUS = sorted(os.sched_getaffinity(0))
LARGE = 1 << 20
HOT = 64 << 20
SLICE = 4096


class OnTwoCores:
    """A child on the second core that does its part of each round; this process is on the first one."""

    def __init__(self, part, *args, same_core=False):
        self.control, theirs = mp.Pipe()
        os.sched_setaffinity(0, {CPUS[0] if same_core else CPUS[1]})
        self.child = mp.Process(target=serve, args=(theirs, part, args), daemon=True)
        self.child.start()
        theirs.close()
        os.sched_setaffinity(0, {CPUS[0]})
        self.control.recv()

    def round(self, n, mine):
        self.control.send(n)
        mine(n)
        self.control.recv()


def serve(control, part, args):
    control.send("here")
    try:
        while True:
            part(control.recv(), *args)
            control.send("done")
    except EOFError:
        pass


def timed(run):
    def measured(n):
        start = time.perf_counter_ns()
        run(n)
        return time.perf_counter_ns() - start

    return measured


def increment(n, value):
    for _ in range(n):
        with value.get_lock():
            value.value += 1


def value_one():
    value = mp.Value("q", 0)
    return timed(lambda n: increment(n, value))


def value_two():
    value = mp.Value("q", 0)
    other = OnTwoCores(increment, value)
    # An operation is one increment of either, so each does half of them.
    return timed(lambda n: other.round(n // 2, lambda n: increment(n, value)))


def lock():
    lock = mp.Lock()

    def run(n):
        for _ in range(n):
            lock.acquire()
            lock.release()

    return timed(run)


def array_element():
    array = mp.Array("i", SLICE)

    def run(n):
        for i in range(n):
            array[i % SLICE] += 1

    return timed(run)


def array_slice():
    array = mp.Array("i", SLICE)

    def run(n):
        for _ in range(n):
            with array.get_lock():
                for i in range(SLICE):
                    array[i] += 1

    return timed(run)


def manager(cpu):
    os.sched_setaffinity(0, {cpu})
    server = managers.SyncManager(ctx=mp)
    server.start()
    os.sched_setaffinity(0, {CPUS[0]})
    return server


def manager_get_set(cpu):
    server = manager(cpu)
    shared = server.dict({"key": 1})

    def run(n):
        for i in range(n // 2):
            shared["key"] = i
            shared["key"]

    measured = timed(run)
    measured.keep = server
    return measured


def put_all(n, queue):
    for i in range(n):
        queue.put(i)


def queue():
    queue = mp.Queue()
    other = OnTwoCores(put_all, queue)

    def get_all(n):
        for _ in range(n):
            queue.get()

    return timed(lambda n: other.round(n, get_all))


def echo(n, end):
    for _ in range(n):
        end.send(end.recv())


def pipe(same_core):
    ours, theirs = mp.Pipe()
    other = OnTwoCores(echo, theirs, same_core=same_core)

    def ping(n):
        for i in range(n):
            ours.send(i)
            ours.recv()

    return timed(lambda n: other.round(n, ping))


def send_large(n, end):
    data = bytes(LARGE)
    for _ in range(n):
        end.send_bytes(data)


def pipe_large():
    ours, theirs = mp.Pipe(duplex=False)
    other = OnTwoCores(send_large, theirs)

    def receive(n):
        for _ in range(n):
            ours.recv_bytes()

    return timed(lambda n: other.round(n, receive))


def answer_events(n, asked, answered):
    for _ in range(n):
        asked.wait()
        asked.clear()
        answered.set()


def event():
    asked, answered = mp.Event(), mp.Event()
    other = OnTwoCores(answer_events, asked, answered)

    def ask(n):
        for _ in range(n):
            asked.set()
            answered.wait()
            answered.clear()

    return timed(lambda n: other.round(n, ask))


def take_turns(n, condition, turn, me):
    for _ in range(n):
        with condition:
            while turn.value != me:
                condition.wait()
            turn.value = 1 - me
            condition.notify()


def condition():
    condition, turn = mp.Condition(), mp.Value("i", 0, lock=False)
    other = OnTwoCores(take_turns, condition, turn, 1)
    return timed(lambda n: other.round(n, lambda n: take_turns(n, condition, turn, 0)))


def pass_barrier(n, barrier):
    for _ in range(n):
        barrier.wait()


def barrier():
    barrier = mp.Barrier(2)
    other = OnTwoCores(pass_barrier, barrier)
    return timed(lambda n: other.round(n, lambda n: pass_barrier(n, barrier)))


def memory_copy():
    memory = shared_memory.SharedMemory(create=True, size=HOT)
    data = b"x" * HOT
    memory.buf[:HOT] = data

    def run(n):
        for _ in range(n):
            memory.buf[:HOT] = data

    return with_end(run, memory)


def memory_attach():
    memory = shared_memory.SharedMemory(create=True, size=4096)

    def run(n):
        for _ in range(n):
            attached = shared_memory.SharedMemory(name=memory.name)
            attached.buf[0]
            attached.close()

    return with_end(run, memory)


def shareable_list(write):
    values = shared_memory.ShareableList(range(8))

    def get(n):
        for i in range(n):
            values[i & 7]

    def put(n):
        for i in range(n):
            values[i & 7] = i

    return with_end(put if write else get, values.shm)


def with_end(run, memory):
    def end():
        memory.close()
        memory.unlink()

    measured = timed(run)
    measured.end = end
    return measured


ROWS = {
    "value-one": value_one,
    "value-two": value_two,
    "lock": lock,
    "array-element": array_element,
    "array-slice": array_slice,
    "manager-one-core": lambda: manager_get_set(CPUS[0]),
    "manager-two-cores": lambda: manager_get_set(CPUS[1]),
    "queue": queue,
    "pipe-one-core": lambda: pipe(True),
    "pipe-two-cores": lambda: pipe(False),
    "pipe-large": pipe_large,
    "event": event,
    "condition": condition,
    "barrier": barrier,
    "memory-copy": memory_copy,
    "memory-attach": memory_attach,
    "list-get": lambda: shareable_list(False),
    "list-set": lambda: shareable_list(True),
}


def main():
    make = ROWS.get(sys.argv[1])
    if make is None:
        print("none", flush=True)
        return
    run = make()
    try:
        print("ready", flush=True)
        for line in sys.stdin:
            print(run(int(line)), flush=True)
    finally:
        if hasattr(run, "end"):
            run.end()
        if hasattr(run, "keep"):
            run.keep.shutdown()


if __name__ == "__main__":
    main()
