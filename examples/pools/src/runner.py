"""Python's executors on the same work: does what runner.rs describes, with the plan as its argument.

A task that computes takes as long as in Rust (the loop is calibrated), the prime check does the same divisions.
"""

import json
import sys
import time
from collections import deque


def no_op(n):
    return n


def spin(rounds):
    for _ in range(rounds):
        pass


def is_prime(n):
    return n >= 2 and all(n % d for d in range(2, n))


def calibrate():
    """How many rounds of the loop take a microsecond."""
    rounds, best = 20_000, float("inf")
    for _ in range(20):
        start = time.perf_counter()
        spin(rounds)
        best = min(best, time.perf_counter() - start)
    return rounds / (best * 1e6)


def time_prime(n):
    """How many seconds the prime check takes."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        is_prime(n)
        best = min(best, time.perf_counter() - start)
    return best


def main(plan):
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

    executor, workload, workers = plan["executor"], plan["workload"], plan["workers"]
    # Forked workers start fastest, and find the functions of this program.
    context = multiprocessing.get_context("fork")
    if executor == "python-multiprocessing":
        pool = context.Pool(workers)
        submit = lambda function, argument: pool.apply_async(function, (argument,)).get
        mapped = lambda items: pool.map(no_op, items, chunksize=plan["chunk"])
        close = lambda: (pool.close(), pool.join())
    else:
        if executor == "python-process-pool":
            pool = ProcessPoolExecutor(workers, mp_context=context)
        else:
            pool = ThreadPoolExecutor(workers)
        submit = lambda function, argument: pool.submit(function, argument).result
        mapped = lambda items: pool.map(no_op, items, chunksize=plan["chunk"])
        close = pool.shutdown

    if workload == "no-op":
        function, argument, right = no_op, 7, lambda result: result == 7
    elif workload.startswith("cpu-"):
        function, argument, right = spin, plan["spin_rounds"], lambda result: result is None
    elif workload == "prime":
        function, argument, right = is_prime, plan["prime"], lambda result: result
    elif workload.startswith("payload-"):
        size = plan["payload"]
        function, argument, right = no_op, b"\7" * size, lambda result: len(result) == size
    else:
        function, argument, right = time.sleep, plan["wait_s"], lambda result: result is None

    def run(numbers):
        if workload.startswith("map"):
            if sum(mapped(numbers)) != sum(numbers):
                raise ValueError("a result is wrong")
            return
        pending = deque()
        for n in numbers:
            if len(pending) == plan["window"] and not right(pending.popleft()()):
                raise ValueError("a result is wrong")
            pending.append(submit(function, argument))
        if not all(right(result()) for result in pending):
            raise ValueError("a result is wrong")

    for line in sys.stdin:
        what, number, *rest = line.split()
        try:
            start = time.perf_counter()
            if what == "batch":
                run(range(int(number)))
                answer = {"seconds": time.perf_counter() - start}
            else:
                times = []
                for n in range(int(number)):
                    before = time.perf_counter_ns()
                    run(range(n, n + 1))
                    times.append(time.perf_counter_ns() - before)
                    if time.perf_counter() - start > float(rest[0]):
                        break
                answer = {"nanoseconds": times}
        except Exception as error:
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)
    close()


if __name__ == "__main__":
    if sys.argv[1] == "calibrate":
        found = {"executable": sys.executable, "rounds_per_us": calibrate(), "prime_s": time_prime(int(sys.argv[2]))}
        print(json.dumps(found))
    else:
        main(json.loads(sys.argv[1]))
