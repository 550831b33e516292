//! `map`: many tasks in, their outcomes out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FusedStream;
use integration_tests::tasks::{
    add, all_but, double, leave, make_tracked, own_name, panic_with_literal, pass, take_time,
};
use integration_tests::waiting::runtime;
use integration_tests::{Board, ContractRow, Fixture, Tracked, Waiting, eventually, millis, rows, seconds};
use polypool::{ExecutorExt, Outcome, Priority, Shutdown, TaskError, TaskOptions};

pub(crate) const ROWS: &[ContractRow] = rows![
    p28_map_equals_the_sequential_map,
    p28_chunk_size_0_is_refused_before_any_task_runs,
    p29_failure_comes_in_its_place,
    p30_one_deadline_for_the_whole_map,
    p30_unfinished_elements_are_cancelled,
    p31_map_starts_work_without_being_iterated,
    p32_look_ahead_is_exactly_the_buffer,
    p32_a_chunk_is_pulled_as_soon_as_the_buffer_has_room_for_it,
    p32_infinite_input_works,
    p32_buffer_0_is_refused,
    p33_empty_input_ends_at_once,
    p33_unequal_inputs_stop_at_the_shortest,
    p34_map_does_not_keep_a_delivered_result,
    map_unordered_yields_in_the_order_of_completion,
    map_pulls_nothing_before_it_is_started,
    map_passes_its_options_to_each_task,
    dropping_a_map_detaches_what_runs,
    map_on_a_pool_that_was_shut_down_says_so,
];

fn numbers(outcomes: impl IntoIterator<Item = Outcome<u64>>) -> Vec<u64> {
    outcomes.into_iter().map(Result::unwrap).collect()
}

fn p28_map_equals_the_sequential_map(executor: &'static dyn Fixture) {
    let pool = executor.pool(2);
    let expected: Vec<u64> = (0..40).map(double).collect();
    for waiting in Waiting::BOTH {
        for chunk in [1, 3, 6, 40, 50] {
            let map = pool.map((0..40).map(|n| double { n })).chunk_size(chunk);
            assert_eq!(numbers(waiting.iterate(map)), expected, "{waiting:?}, chunk {chunk}");
            let mut unordered: Vec<u64> =
                numbers(pool.map_unordered((0..40).map(|n| double { n })).chunk_size(chunk).blocking());
            unordered.sort_unstable();
            assert_eq!(unordered, expected, "unordered, chunk {chunk}");
        }
    }
}

fn p28_chunk_size_0_is_refused_before_any_task_runs(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    for waiting in Waiting::BOTH {
        let traces = board.traces();
        let tasks = (0..3).map(move |n| leave { traces: traces.clone(), text: n.to_string() });
        let mut outcomes = waiting.iterate(pool.map(tasks).chunk_size(0).start());
        match outcomes.next() {
            Some(Err(TaskError::InvalidOption(text))) => assert!(text.contains("chunk_size(0)"), "{text}"),
            other => panic!("{other:?}"),
        }
        assert!(outcomes.next().is_none());
    }
    pool.submit(double { n: 1 }).wait().unwrap();
    assert_eq!(board.traces().count(), 0);
    assert_eq!(pool.stats().submitted, 1);
}

fn p29_failure_comes_in_its_place(executor: &'static dyn Fixture) {
    let pool = executor.pool(2);
    for waiting in Waiting::BOTH {
        for bad in [1, 2] {
            for chunk in [1, 3] {
                let map = pool.map((0..4).map(move |n| all_but { n, bad })).chunk_size(chunk);
                let mut outcomes = waiting.iterate(map);
                for n in 0..4 {
                    match outcomes.next().expect("four elements") {
                        Ok(value) => assert!(value == n && n != bad),
                        Err(TaskError::Panicked(report)) => {
                            assert_eq!(n, bad, "chunk {chunk}");
                            assert_eq!(report.message.as_deref(), Some(&*format!("{bad} is bad")));
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
                assert!(outcomes.next().is_none());
                assert!(outcomes.next().is_none(), "and ended again");
            }
        }
    }
    runtime().block_on(async {
        let mut map = pool.map([panic_with_literal {}]);
        assert!(map.next().await.unwrap().is_err());
        assert!(!map.is_terminated());
        assert!(map.next().await.is_none());
        assert!(map.is_terminated());
        assert!(map.next().await.is_none());
    });
}

fn p30_one_deadline_for_the_whole_map(executor: &'static dyn Fixture) {
    for waiting in Waiting::BOTH {
        let board = Board::new();
        let pool = executor.pool(2);
        // Elements that take no time, and one that never ends by itself.
        let open = board.gate("open");
        open.open();
        let tasks = vec![
            pass { gate: open.clone(), value: 0 },
            pass { gate: open.clone(), value: 1 },
            pass { gate: board.gate("closed"), value: 2 },
        ];
        let start = Instant::now();
        let mut outcomes = waiting.iterate(pool.map(tasks).timeout(seconds(1)).start());
        let mut values = 0;
        let error = loop {
            match outcomes.next().expect("a timeout before the end") {
                Ok(_) => values += 1,
                Err(error) => break error,
            }
        };
        let took = start.elapsed();
        assert!(values <= 2);
        match error {
            TaskError::WaitElapsed(unfinished) => {
                assert_eq!((unfinished.unfinished(), unfinished.total()), (3 - values, 3));
            }
            other => panic!("{other}"),
        }
        assert!(outcomes.next().is_none());
        assert!(outcomes.next().is_none());
        assert!(took >= seconds(1) && took < seconds(2), "{waiting:?}: {took:?}");
        board.gate("closed").open();
    }
}

fn p30_unfinished_elements_are_cancelled(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let (gate, traces) = (board.gate("hold"), board.traces());
    let busy = pool.submit(pass { gate: gate.clone(), value: 0 });
    gate.wait_for_arrivals(1);
    let tasks: Vec<_> = (0..3).map(|n| leave { traces: traces.clone(), text: n.to_string() }).collect();
    let outcomes: Vec<_> = pool.map(tasks).timeout(millis(50)).blocking().collect();
    assert!(matches!(outcomes[..], [Err(TaskError::WaitElapsed(_))]), "{outcomes:?}");
    gate.open();
    busy.wait().unwrap();
    pool.submit(double { n: 1 }).wait().unwrap();
    assert_eq!(traces.count(), 0, "what was queued never ran");
}

fn p31_map_starts_work_without_being_iterated(executor: &'static dyn Fixture) {
    for chunk in [1, 4] {
        let board = Board::new();
        let pool = executor.pool(2);
        let traces = board.traces();
        let map = pool
            .map((0..10).map(move |n| leave { traces: traces.clone(), text: n.to_string() }))
            .chunk_size(chunk)
            .start();
        pool.shutdown(Shutdown::Drain).wait();
        assert_eq!(board.traces().count(), 10);
        drop(map);
    }
}

/// A source of tasks that counts how many were pulled from it.
fn counted<T, F>(pulled: &Arc<AtomicUsize>, task: F) -> impl Iterator<Item = T> + Unpin + use<T, F>
where
    F: Fn(u64) -> T + Unpin,
{
    let pulled = pulled.clone();
    let mut next = 0;
    std::iter::from_fn(move || {
        pulled.fetch_add(1, Ordering::SeqCst);
        next += 1;
        Some(task(next - 1))
    })
}

fn p32_look_ahead_is_exactly_the_buffer(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(2);
    let traces = board.traces();
    let pulled = Arc::new(AtomicUsize::new(0));
    let source = counted(&pulled, {
        let traces = traces.clone();
        move |n| leave { traces: traces.clone(), text: n.to_string() }
    });
    let mut map = pool.map(source).buffer(2).start().blocking();
    assert_eq!(traces.wait_for(2).len(), 2, "two have run");
    // The source is pulled by the reader alone, so nothing more can come; the row asks for a pause all the same.
    std::thread::sleep(millis(50));
    assert_eq!((pulled.load(Ordering::SeqCst), traces.count()), (2, 2));
    for read in 1..=5 {
        map.next().unwrap().unwrap();
        assert_eq!(pulled.load(Ordering::SeqCst), 2 + read, "each read pulls exactly one more");
    }
    assert_eq!(traces.wait_for(7).len(), 7);
    drop(map);
    pool.shutdown(Shutdown::Drain).wait();
    assert_eq!((pulled.load(Ordering::SeqCst), traces.count()), (7, 7));
}

fn p32_a_chunk_is_pulled_as_soon_as_the_buffer_has_room_for_it(executor: &'static dyn Fixture) {
    const ELEMENTS: usize = 40;
    let pool = executor.pool(2);
    for waiting in Waiting::BOTH {
        // The last chunk may be cut short; the room left over by chunks that don't divide the buffer is used, too.
        for (chunk, buffer) in [(1, 1), (1, 5), (3, 8), (4, 8), (5, 6), (7, 64)] {
            let pulled = Arc::new(AtomicUsize::new(0));
            let tasks = counted(&pulled, |n| double { n }).take(ELEMENTS);
            let mut outcomes = waiting.iterate(pool.map(tasks).chunk_size(chunk).buffer(buffer));
            for read in 1..=ELEMENTS {
                assert_eq!(outcomes.next().unwrap().unwrap(), 2 * (read as u64 - 1));
                let pulled = pulled.load(Ordering::SeqCst);
                assert!(
                    pulled <= ELEMENTS && pulled - read <= buffer,
                    "{pulled} pulled after {read}: {chunk}, {buffer}"
                );
                let has_room = pulled < ELEMENTS && pulled - read + chunk <= buffer;
                assert!(!has_room, "only {pulled} pulled after {read}: {chunk}, {buffer}");
            }
            assert!(outcomes.next().is_none());
        }
    }
}

fn p32_infinite_input_works(executor: &'static dyn Fixture) {
    let pool = executor.pool(2);
    for waiting in Waiting::BOTH {
        let map = pool.map((0..).map(|n| double { n })).buffer(2);
        assert_eq!(numbers(waiting.iterate(map).take(3)), [0, 2, 4]);
        let map = pool.map((0..).map(|n| double { n })).buffer(8).chunk_size(3);
        assert_eq!(numbers(waiting.iterate(map).take(10)).len(), 10);
        // A chunk larger than the buffer still fits into it.
        let map = pool.map((0..).map(|n| double { n })).buffer(2).chunk_size(50);
        assert_eq!(numbers(waiting.iterate(map).take(3)), [0, 2, 4]);
    }
    let mut map = pool.map_unordered((0..).map(|n| double { n })).buffer(4).blocking();
    assert!((0..10).all(|_| map.next().unwrap().is_ok()));
}

fn p32_buffer_0_is_refused(executor: &'static dyn Fixture) {
    let pool = executor.pool(1);
    let pulled = Arc::new(AtomicUsize::new(0));
    let mut map = pool.map(counted(&pulled, |n| double { n })).buffer(0).start().blocking();
    match map.next() {
        Some(Err(TaskError::InvalidOption(text))) => assert!(text.contains("buffer(0)"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(map.next().is_none());
    assert_eq!((pulled.load(Ordering::SeqCst), pool.stats().submitted), (0, 0));
}

fn p33_empty_input_ends_at_once(executor: &'static dyn Fixture) {
    let pool = executor.pool(1);
    for waiting in Waiting::BOTH {
        for chunk in [1, 5] {
            let mut outcomes = waiting.iterate(pool.map(Vec::<double>::new()).chunk_size(chunk).timeout(seconds(50)));
            assert!(outcomes.next().is_none());
            assert!(outcomes.next().is_none());
        }
    }
    assert!(pool.map_unordered(Vec::<double>::new()).blocking().next().is_none());
}

fn p33_unequal_inputs_stop_at_the_shortest(executor: &'static dyn Fixture) {
    let pool = executor.pool(1);
    for chunk in [1, 2, 10] {
        let both = (0..).zip([10, 20, 30]).map(|(a, b)| add { a, b });
        assert_eq!(numbers(pool.map(both).chunk_size(chunk).blocking()), [10, 21, 32]);
    }
}

fn p34_map_does_not_keep_a_delivered_result(executor: &'static dyn Fixture) {
    let pool = executor.pool(2);
    for waiting in Waiting::BOTH {
        for chunk in [1, 3] {
            let map = pool.map((0..10).map(|number| make_tracked { number })).chunk_size(chunk);
            let mut outcomes = waiting.iterate(map);
            for number in 0..10 {
                let result = outcomes.next().unwrap().unwrap();
                assert_eq!((result.number(), Tracked::live(number)), (number, 1));
                drop(result);
                assert_eq!(Tracked::live(number), 0, "the loop variable was the last owner");
            }
        }
    }
    let map = pool.map_unordered((0..10).map(|number| make_tracked { number }));
    for result in map.blocking().map(Result::unwrap) {
        let number = result.number();
        assert_eq!(Tracked::live(number), 1);
        drop(result);
        assert_eq!(Tracked::live(number), 0);
    }
}

fn map_unordered_yields_in_the_order_of_completion(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(2);
    let gate = board.gate("hold");
    let open = board.gate("open");
    open.open();
    let tasks = vec![
        pass { gate: gate.clone(), value: 0 },
        pass { gate: open.clone(), value: 1 },
        pass { gate: open, value: 2 },
    ];
    let mut outcomes = pool.map_unordered(tasks).blocking();
    assert_eq!(outcomes.next().unwrap().unwrap(), 1);
    assert_eq!(outcomes.next().unwrap().unwrap(), 2);
    gate.open();
    assert_eq!(outcomes.next().unwrap().unwrap(), 0);
    assert!(outcomes.next().is_none());
}

fn map_pulls_nothing_before_it_is_started(executor: &'static dyn Fixture) {
    let pool = executor.pool(1);
    let pulled = Arc::new(AtomicUsize::new(0));
    let map = pool.map(counted(&pulled, |n| double { n })).buffer(3);
    assert_eq!(pulled.load(Ordering::SeqCst), 0);
    let map = map.start();
    assert_eq!(pulled.load(Ordering::SeqCst), 3);
    drop(map);
}

fn map_passes_its_options_to_each_task(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let options = TaskOptions::new().timeout(millis(50)).priority(Priority::High);
    let tasks = vec![pass { gate: board.gate("closed"), value: 0 }];
    let outcomes: Vec<_> = pool.map(tasks).options(options).blocking().collect();
    assert!(matches!(outcomes[..], [Err(TaskError::TimedOut { after })] if after == millis(50)), "{outcomes:?}");
    board.gate("closed").open();
    assert_eq!(pool.submit(take_time { ms: 1 }).wait().unwrap(), 1);
    // To those as well that come when others have gone.
    let named = TaskOptions::new().name("one of many");
    let names = pool.map((0..10).map(|_| own_name {})).options(named).buffer(2).blocking();
    assert!(names.map(Result::unwrap).all(|name| name.as_deref() == Some("one of many")));
}

fn dropping_a_map_detaches_what_runs(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let traces = board.traces();
    let tasks: Vec<_> = (0..3).map(|n| leave { traces: traces.clone(), text: n.to_string() }).collect();
    let gate = board.gate("hold");
    let _busy = pool.submit(pass { gate: gate.clone(), value: 0 });
    drop(pool.map(tasks).start());
    gate.open();
    assert_eq!(traces.wait_for(3), ["0", "1", "2"]);
}

fn map_on_a_pool_that_was_shut_down_says_so(executor: &'static dyn Fixture) {
    let pool = executor.pool(1);
    pool.shutdown(Shutdown::Drain).wait();
    let outcomes: Vec<_> = pool.map((0..3).map(|n| double { n })).blocking().collect();
    assert_eq!(outcomes.len(), 3);
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(TaskError::Rejected(_)))), "{outcomes:?}");
    assert!(eventually(seconds(1), || pool.stats().queued == 0));
}
