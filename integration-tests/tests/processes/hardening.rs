//! Priorities against what was sent ahead, a parent that holds its own stderr, and a start that gets no answer.

use std::io;
use std::time::Instant;

use integration_tests::tasks::{double, take_time};
use integration_tests::{Row, eventually, millis, seconds, within};
use polypool::{Executor, ExecutorExt, Priority, Shutdown, StartMethod, TaskOptions};

use crate::both;
use crate::common::{builder, ends_clean, no_process_is_left, others, pool, soon, warm_up};

pub(crate) const ROWS: &[Row<fn()>] = both![
    high_priority_overtakes_what_was_sent_ahead,
    parent_that_holds_its_stderr_stops_no_task,
    now_does_not_wait_for_a_start_that_gets_no_answer,
];

fn high_priority_overtakes_what_was_sent_ahead(method: StartMethod) {
    let pool = pool(method, 2);
    // The workers are used to fast tasks: many calls are sent to them at once.
    warm_up(&pool);
    let slow: Vec<_> = (0..200).map(|_| pool.submit(take_time { ms: 20 })).collect();
    assert!(eventually(seconds(5), || slow[0].is_running()), "they have been sent");
    let start = Instant::now();
    let mut urgent = pool.submit_with(double { n: 4 }, TaskOptions::new().priority(Priority::High));
    assert_eq!(urgent.wait_timeout(seconds(1)).expect("ahead of the slow ones").unwrap(), 8);
    let waiting = slow.iter().filter(|task| !task.is_done()).count();
    assert!(waiting > 50, "{waiting} still wait after {:?}", start.elapsed());
    for task in slow {
        assert_eq!(task.wait().unwrap(), 20);
    }
    ends_clean(&pool, Shutdown::Drain);
}

#[polypool::task]
fn say_on_stderr(lines: usize) -> usize {
    for line in 0..lines {
        eprintln!("line {line}");
    }
    lines
}

fn parent_that_holds_its_stderr_stops_no_task(method: StartMethod) {
    let pool = pool(method, 1);
    let lock = io::stderr().lock();
    for _ in 0..3 {
        assert_eq!(soon(pool.submit(say_on_stderr { lines: 20 })).unwrap(), 20);
    }
    drop(lock);
    ends_clean(&pool, Shutdown::Drain);
}

fn now_does_not_wait_for_a_start_that_gets_no_answer(method: StartMethod) {
    let pool = builder(method, 1)
        .worker_executable(env!("CARGO_BIN_EXE_forgetful"))
        .env("FORGETFUL", "sleep")
        .handshake_timeout(seconds(10))
        .build()
        .unwrap();
    let task = pool.submit(double { n: 1 });
    assert!(eventually(seconds(5), || others().iter().any(|seen| !seen.is_zombie())), "the start has begun");
    std::thread::sleep(millis(200));
    within(seconds(5), || {
        pool.shutdown(Shutdown::Now).wait();
        assert!(soon(task).unwrap_err().is_cancelled());
    });
    no_process_is_left(seconds(5));
}
