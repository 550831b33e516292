//! Handles travel: descriptors in arguments and results of tasks, to worker processes and back, as often as their call
//! is sent; and none of them stays open anywhere.

use std::collections::HashMap;
use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use futures_util::StreamExt;
use integration_tests::tasks::{double, pass};
use integration_tests::{Board, Gate, Row, Traces, eventually, rows, seconds, within};
use polypool::{
    CodecError, Executor, ExecutorExt, Fd, ProcessPool, Shutdown, StartMethod, TaskError, TaskOptions, ThreadPool,
    context,
};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::both;
use crate::common::{
    Death, builder, descriptors_and_threads, die, ends_clean, goes_on, lost, numbers_in, pids, pool,
    settled_descriptors_and_threads, signal, soon, warm_up,
};

pub(crate) const ROWS: &[Row<fn()>] = both![
    handle_in_an_argument,
    handle_in_an_argument_of_an_asynchronous_task,
    handle_in_a_result,
    handles_in_fields,
    handle_that_stands_twice_in_a_message_travels_once,
    handles_by_the_hundred,
    handles_beyond_the_limit_are_an_error_that_says_so,
    handles_in_a_map_with_chunks,
    handles_in_the_results_of_chunks,
    handle_in_the_initializer,
    handle_in_a_large_message,
    handle_is_sent_again_with_a_retry,
    handle_of_a_lost_call_is_closed,
    handle_of_a_cancelled_call_is_closed_at_once,
    handles_are_not_sent_ahead_of_a_running_task,
    handles_of_a_call_that_was_taken_back_are_passed_over,
    handles_do_not_overtake,
    task_has_its_handle_to_itself,
    handles_in_answers_that_come_too_late_are_closed,
    nothing_leaks_in_the_parent,
    nothing_leaks_in_the_worker,
    worker_without_room_for_a_handle_fails_that_call_only,
    parent_without_room_for_a_handle_fails_that_call_only,
    handle_outside_of_a_message_is_an_error_that_says_so,
];

pub(crate) const ONCE: &[Row<fn()>] = rows![handles_that_the_system_refuses_fail_that_call_only, handles_on_threads];

// ---- Handles, and tasks with them ----------------------------------------------------------------------------------

/// A file in memory that holds this text.
fn memory(text: impl AsRef<[u8]>) -> Fd {
    let file = File::from(memfd_create("a test", MemfdFlags::CLOEXEC).expect("memory"));
    file.write_all_at(text.as_ref(), 0).expect("written");
    Fd::new(file.into())
}

/// What it holds.
fn content(handle: Fd) -> String {
    let file = File::from(handle.into_inner().expect("its own"));
    let mut bytes = vec![0; 4096];
    let count = file.read_at(&mut bytes, 0).expect("read");
    String::from_utf8(bytes[..count].to_vec()).expect("text")
}

fn pipe() -> (PipeReader, Fd) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    (reader, Fd::new(writer.into()))
}

/// All that comes out of a pipe, until nobody holds its other end.
#[track_caller]
fn all(mut reader: PipeReader) -> String {
    within(seconds(5), move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("text");
        text
    })
}

fn write(handle: &Fd, text: &str) {
    File::from(handle.as_fd().try_clone_to_owned().expect("a copy")).write_all(text.as_bytes()).expect("written");
}

#[polypool::task]
fn say(into: Fd, text: String) {
    write(&into, &text);
}

#[polypool::task]
async fn say_later(into: Fd, text: String) {
    tokio::task::yield_now().await;
    write(&into, &text);
}

#[polypool::task]
fn make(text: String) -> Fd {
    let handle = memory(&text);
    // What is left in the end is the one that travels.
    drop(handle.clone());
    handle
}

#[polypool::task]
fn read(handle: Fd) -> String {
    content(handle)
}

/// A value with handles wherever a value may have something.
#[derive(Debug, Serialize, Deserialize)]
struct Bag {
    name: String,
    first: Fd,
    second: Option<Fd>,
    none: Option<Fd>,
    more: HashMap<String, Vec<Fd>>,
    shape: Shape,
    #[serde(flatten)]
    rest: HashMap<String, Fd>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Shape {
    Tagged { handle: Fd, number: u8 },
}

/// Gives back the same handles in another order.
#[polypool::task]
fn turn(bag: Bag) -> Bag {
    assert!(bag.none.is_none());
    let Shape::Tagged { handle, number } = bag.shape;
    Bag {
        name: bag.name,
        first: bag.second.expect("the second one"),
        second: Some(bag.first),
        none: None,
        more: bag.more,
        shape: Shape::Tagged { handle, number: number + 1 },
        rest: bag.rest,
    }
}

/// What each of them holds.
#[polypool::task]
fn read_all(handles: Vec<Fd>) -> Vec<String> {
    handles.into_iter().map(content).collect()
}

#[polypool::task]
fn give_back(mut handles: Vec<Fd>) -> Vec<Fd> {
    handles.reverse();
    handles
}

#[polypool::task]
fn same_file(one: Fd, other: Fd) -> bool {
    one.as_fd().as_raw_fd() == other.as_fd().as_raw_fd()
}

/// Leaves a word in the pipe in each run, and dies in the first ones.
#[polypool::task]
fn say_and_die_at_first(into: Fd, deaths: u32) -> u32 {
    let attempt = context().attempt();
    write(&into, &format!("{attempt} "));
    if attempt < deaths {
        die(Death::Kill);
    }
    attempt
}

/// Returns a handle after a gate, however long nobody has wanted it any more.
#[polypool::task]
fn pass_and_make(gate: Gate) -> Fd {
    gate.pass();
    memory("too late")
}

#[polypool::task]
fn leave_and_drop(handle: Fd, traces: Traces, text: String) {
    traces.leave(text);
    drop(handle);
}

#[polypool::task]
fn fail_with(handle: Fd) {
    panic!("with {handle:?}");
}

/// Whether the descriptor that came is the one that is had.
#[polypool::task]
fn has_it_alone(handle: Fd) -> bool {
    let number = handle.as_fd().as_raw_fd();
    handle.into_inner().is_ok_and(|own| own.as_raw_fd() == number)
}

#[polypool::task]
fn count_descriptors() -> usize {
    numbers_in("/proc/self/fd").count()
}

/// What keeps a process from opening anything.
static FILLING: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

fn fill_up() {
    let mut filling = FILLING.lock().expect("not poisoned");
    while let Ok(file) = File::open("/dev/null") {
        filling.push(file.into());
    }
    assert!(!filling.is_empty());
}

fn make_room() {
    FILLING.lock().expect("not poisoned").clear();
}

#[polypool::task]
fn use_up_descriptors() {
    fill_up();
}

#[polypool::task]
fn free_descriptors() {
    make_room();
}

/// At most so many descriptors, for this process and the workers it starts.
fn limit_descriptors(to: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(to), maximum }).expect("the limit is set");
}

/// Enough descriptors, where the limit is a low one.
fn raise_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the limit is set");
}

// ---- There and back ------------------------------------------------------------------------------------------------

fn handle_in_an_argument(method: StartMethod) {
    let pool = pool(method, 1);
    let (reader, into) = pipe();
    soon(pool.submit(say { into, text: "from a worker".to_owned() })).unwrap();
    // It has an end, so nobody holds the other one: neither the parent nor the worker, which lives.
    assert_eq!(all(reader), "from a worker");
    ends_clean(&pool, Shutdown::Drain);
}

fn handle_in_an_argument_of_an_asynchronous_task(method: StartMethod) {
    let pool = pool(method, 1);
    let (reader, into) = pipe();
    soon(pool.submit(say_later { into, text: "from a worker".to_owned() })).unwrap();
    assert_eq!(all(reader), "from a worker");
    ends_clean(&pool, Shutdown::Drain);
}

fn handle_in_a_result(method: StartMethod) {
    let pool = pool(method, 1);
    let handle = soon(pool.submit(make { text: "made in a worker".to_owned() })).unwrap();
    ends_clean(&pool, Shutdown::Drain);
    assert_eq!(content(handle), "made in a worker", "also when the worker has gone");
}

fn handles_in_fields(method: StartMethod) {
    let pool = pool(method, 1);
    let bag = Bag {
        name: "a bag".to_owned(),
        first: memory("first"),
        second: Some(memory("second")),
        none: None,
        more: HashMap::from([("more".to_owned(), vec![memory("third"), memory("fourth")])]),
        shape: Shape::Tagged { handle: memory("fifth"), number: 7 },
        rest: HashMap::from([("rest".to_owned(), memory("sixth"))]),
    };
    let mut bag = soon(pool.submit(turn { bag })).unwrap();
    assert_eq!((bag.name.as_str(), bag.none.is_none()), ("a bag", true));
    assert_eq!((content(bag.first), content(bag.second.unwrap())), ("second".to_owned(), "first".to_owned()));
    let more: Vec<String> = bag.more.remove("more").unwrap().into_iter().map(content).collect();
    assert_eq!(more, ["third", "fourth"]);
    let Shape::Tagged { handle, number } = bag.shape;
    assert_eq!((content(handle), number), ("fifth".to_owned(), 8));
    assert_eq!(content(bag.rest.remove("rest").unwrap()), "sixth");
    ends_clean(&pool, Shutdown::Drain);
}

fn handle_that_stands_twice_in_a_message_travels_once(method: StartMethod) {
    let pool = pool(method, 1);
    let one = memory("one");
    assert!(soon(pool.submit(same_file { one: one.clone(), other: one.clone() })).unwrap());
    assert!(!soon(pool.submit(same_file { one, other: memory("another") })).unwrap());
    ends_clean(&pool, Shutdown::Drain);
}

fn handles_by_the_hundred(method: StartMethod) {
    raise_limit();
    let pool = pool(method, 1);
    let texts = |count: u32| (0..count).map(|n| n.to_string()).collect::<Vec<_>>();
    let handles = |count: u32| texts(count).iter().map(memory).collect::<Vec<_>>();
    // Around what one message of the system carries, which is 253. A process may have few more than 1,000 open.
    for count in [600, 253, 254, 1] {
        assert_eq!(soon(pool.submit(read_all { handles: handles(count) })).unwrap(), texts(count));
        let made = soon(pool.submit(make_many { count })).unwrap();
        assert_eq!(made.into_iter().map(content).collect::<Vec<_>>(), texts(count));
    }
    let back = soon(pool.submit(give_back { handles: handles(260) })).unwrap();
    assert_eq!(back.into_iter().rev().map(content).collect::<Vec<_>>(), texts(260));
    ends_clean(&pool, Shutdown::Drain);
}

#[polypool::task]
fn make_many(count: u32) -> Vec<Fd> {
    (0..count).map(|n| memory(n.to_string())).collect()
}

fn handles_beyond_the_limit_are_an_error_that_says_so(method: StartMethod) {
    raise_limit();
    if getrlimit(Resource::Nofile).current.is_some_and(|most| most < 4_000) {
        // So many can't even be made here.
        return;
    }
    let pool = pool(method, 1);
    let handles = (0..1_025).map(|n| memory(n.to_string())).collect();
    match soon(pool.submit(read_all { handles })) {
        Err(TaskError::Codec(error)) => {
            assert!(matches!(*error, CodecError::EncodeArgument(_)), "{error:?}");
            assert!(error.to_string().contains("it has 1025 handles, and a message carries at most 1024"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    match soon(pool.submit(make_many { count: 1_025 })) {
        Err(TaskError::Codec(error)) => {
            assert!(matches!(*error, CodecError::EncodeResult(_)), "{error:?}");
            assert!(error.to_string().contains("it has 1025 handles, and a message carries at most 1024"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(soon(pool.submit(make_many { count: 1_024 })).unwrap().len(), 1_024);
    assert_eq!(pool.stats().workers_lost, 0);
    ends_clean(&pool, Shutdown::Drain);
}

fn handles_in_a_map_with_chunks(method: StartMethod) {
    let pool = pool(method, 2);
    let shared = memory("shared by all");
    let tasks: Vec<_> = (0..100)
        .map(|n| read { handle: if n % 10 == 0 { shared.clone() } else { memory(format!("number {n}")) } })
        .collect();
    let outcomes: Vec<_> = within(seconds(20), || pool.map(tasks).chunk_size(7).blocking().collect());
    assert_eq!(outcomes.len(), 100);
    for (n, outcome) in outcomes.into_iter().enumerate() {
        let text = if n % 10 == 0 { "shared by all".to_owned() } else { format!("number {n}") };
        assert_eq!(outcome.unwrap(), text);
    }
    ends_clean(&pool, Shutdown::Drain);
}

fn handles_in_the_results_of_chunks(method: StartMethod) {
    let pool = pool(method, 2);
    let tasks: Vec<_> = (0..50).map(|n| make { text: format!("number {n}") }).collect();
    let outcomes: Vec<_> =
        within(seconds(20), || futures_ext::block_on(pool.map(tasks).chunk_size(8).collect::<Vec<_>>()));
    for (n, outcome) in outcomes.into_iter().enumerate() {
        assert_eq!(content(outcome.unwrap()), format!("number {n}"));
    }
    ends_clean(&pool, Shutdown::Drain);
}

/// What the initialiser was given.
static GIVEN: Mutex<Option<Fd>> = Mutex::new(None);

#[polypool::task]
fn keep(handle: Fd) {
    *GIVEN.lock().expect("not poisoned") = Some(handle);
}

#[polypool::task]
fn say_into_the_given(text: String) {
    let given = GIVEN.lock().expect("not poisoned");
    write(given.as_ref().expect("the initialiser has run"), &text);
}

fn handle_in_the_initializer(method: StartMethod) {
    let (reader, into) = pipe();
    let pool = builder(method, 1).initializer(keep { handle: into }).max_tasks_per_worker(1).build().unwrap();
    for n in 0..3 {
        // Each time in another worker, which is given the handle again.
        soon(pool.submit(say_into_the_given { text: format!("{n} ") })).unwrap();
    }
    ends_clean(&pool, Shutdown::Drain);
    drop(pool);
    assert_eq!(all(reader), "0 1 2 ");
}

/// With more bytes than are copied behind their header.
#[polypool::task]
fn exchange(handle: Fd, bytes: Vec<u8>) -> (String, Fd, Vec<u8>) {
    (content(handle), memory("back"), bytes)
}

fn handle_in_a_large_message(method: StartMethod) {
    let pool = pool(method, 1);
    for size in [0, 15_000, 17_000, 300_000] {
        let bytes = vec![7; size];
        let (text, back, same) = soon(pool.submit(exchange { handle: memory("there"), bytes: bytes.clone() })).unwrap();
        assert_eq!((text.as_str(), content(back).as_str()), ("there", "back"));
        assert!(same == bytes, "{size} bytes");
    }
    ends_clean(&pool, Shutdown::Drain);
}

// ---- Again, and elsewhere ------------------------------------------------------------------------------------------

fn handle_is_sent_again_with_a_retry(method: StartMethod) {
    let pool = pool(method, 1);
    let (reader, into) = pipe();
    let task = pool.submit_with(say_and_die_at_first { into, deaths: 2 }, TaskOptions::new().retries(2));
    assert_eq!(soon(task).unwrap(), 2);
    assert_eq!(all(reader), "0 1 2 ");
    assert_eq!(pool.stats().workers_lost, 2);
    ends_clean(&pool, Shutdown::Drain);
}

fn handle_of_a_lost_call_is_closed(method: StartMethod) {
    let pool = pool(method, 1);
    let (reader, into) = pipe();
    lost(soon(pool.submit(say_and_die_at_first { into, deaths: 1 })));
    assert_eq!(all(reader), "0 ");
    goes_on(&pool);
    ends_clean(&pool, Shutdown::Drain);
}

fn handle_of_a_cancelled_call_is_closed_at_once(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 1);
    // What could be sent ahead now is.
    warm_up(&pool);
    let gate = board.gate("busy");
    let busy = pool.submit(pass { gate: gate.clone(), value: 1 });
    gate.wait_for_arrivals(1);
    let (reader, into) = pipe();
    let queued = pool.submit(say { into, text: "never".to_owned() });
    // This one is behind it, and the supervisor has seen both when it has settled.
    let deadline = TaskOptions::new().deadline(std::time::Instant::now() + integration_tests::millis(50));
    assert!(matches!(soon(pool.submit_with(double { n: 1 }, deadline)), Err(TaskError::DeadlineExceeded)));
    assert!(queued.cancel());
    assert_eq!(all(reader), "", "while the worker is still busy");
    assert!(soon(queued).unwrap_err().is_cancelled());
    gate.open();
    assert_eq!(soon(busy).unwrap(), 1);
    goes_on(&pool);
    ends_clean(&pool, Shutdown::Drain);
}

/// Reads to the end of the pipe.
#[polypool::task]
fn read_to_the_end(gate: Gate, from: Fd) -> String {
    gate.arrive();
    let mut text = String::new();
    File::from(from.into_inner().expect("its own")).read_to_string(&mut text).expect("text");
    text
}

fn handles_are_not_sent_ahead_of_a_running_task(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 2);
    warm_up(&pool);
    let gate = board.gate("reading");
    let (reader, into) = pipe();
    let text = pool.submit(read_to_the_end { gate: gate.clone(), from: Fd::new(reader.into()) });
    gate.wait_for_arrivals(1);
    // If a copy of the handle lay before the busy worker, that would wait for itself.
    let said: Vec<_> = (0..20).map(|_| pool.submit(say { into: into.clone(), text: ".".to_owned() })).collect();
    for task in said {
        soon(task).unwrap();
    }
    drop(into);
    assert_eq!(soon(text).unwrap(), ".".repeat(20));
    ends_clean(&pool, Shutdown::Drain);
}

fn handles_of_a_call_that_was_taken_back_are_passed_over(method: StartMethod) {
    let pool = pool(method, 1);
    goes_on(&pool);
    let worker = pids(&pool)[0];
    for count in [1, 3, 300] {
        signal(worker, Signal::STOP);
        let taken_back = pool.submit(read_all { handles: vec![memory("wrong"); 1] });
        let also = pool.submit(give_back { handles: (0..count).map(|_| memory("wrong")).collect() });
        assert!(eventually(seconds(5), || pool.stats().workers[0].busy), "it is sent");
        assert!(taken_back.cancel());
        // Now this one is sent; the worker has begun with neither.
        let (_reader, into) = pipe();
        let last = pool.submit(say { into, text: "x".to_owned() });
        assert!(also.cancel() && last.cancel());
        signal(worker, Signal::CONT);
        assert_eq!(soon(pool.submit(read { handle: memory("right") })).unwrap(), "right");
    }
    assert_eq!((pids(&pool), pool.stats().workers_lost), (vec![worker], 0));
    ends_clean(&pool, Shutdown::Drain);
}

fn handles_do_not_overtake(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 1);
    warm_up(&pool);
    let traces = board.traces();
    let gate = board.gate("first");
    let first = pool.submit(pass { gate: gate.clone(), value: 0 });
    gate.wait_for_arrivals(1);
    let mut tasks = Vec::new();
    for n in 0..60 {
        let (traces, text) = (traces.clone(), n.to_string());
        if n % 3 == 0 {
            tasks.push(pool.submit(leave_and_drop { handle: memory("x"), traces, text }));
        } else {
            tasks.push(pool.submit(integration_tests::tasks::leave { traces, text }));
        }
    }
    gate.open();
    soon(first).unwrap();
    for task in tasks {
        soon(task).unwrap();
    }
    let order: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    assert_eq!(traces.all(), order, "one worker does them in their order");
    ends_clean(&pool, Shutdown::Drain);
}

fn task_has_its_handle_to_itself(method: StartMethod) {
    let pool = pool(method, 1);
    assert!(soon(pool.submit(has_it_alone { handle: memory("x") })).unwrap());
    ends_clean(&pool, Shutdown::Drain);
}

// ---- Nothing is left -----------------------------------------------------------------------------------------------

fn handles_in_answers_that_come_too_late_are_closed(method: StartMethod) {
    let board = Board::new();
    let pool = builder(method, 1).kill_grace(seconds(20)).build().unwrap();
    goes_on(&pool);
    let before = descriptors_and_threads().0;
    let gate = board.gate("late");
    let task = pool.submit(pass_and_make { gate: gate.clone() });
    gate.wait_for_arrivals(1);
    let open = descriptors_and_threads().0;
    task.cancel();
    gate.open();
    goes_on(&pool);
    assert_eq!(pool.stats().workers_lost, 0, "it has ended by itself");
    // The gate has connections of its own.
    let after = descriptors_and_threads().0;
    assert!(after <= open, "from {before} by {open} to {after}");
    ends_clean(&pool, Shutdown::Drain);
}

fn nothing_leaks_in_the_parent(method: StartMethod) {
    let before = settled_descriptors_and_threads(method);
    {
        let pool = pool(method, 2);
        let round = |n: u32| {
            drop(soon(pool.submit(make { text: n.to_string() })).unwrap());
            soon(pool.submit(read { handle: memory("x") })).unwrap();
            assert!(soon(pool.submit(fail_with { handle: memory("x") })).is_err());
            drop(soon(pool.submit(give_back { handles: (0..20).map(|_| memory("x")).collect() })).unwrap());
            let (_reader, into) = pipe();
            let cancelled = pool.submit(say { into, text: "x".to_owned() });
            cancelled.cancel();
            // Detached: nobody takes its result.
            drop(pool.submit(make { text: "x".to_owned() }));
        };
        round(0);
        let settled = descriptors_and_threads().0;
        (1..50).for_each(round);
        // Its second worker, which may have come meanwhile, takes nine.
        let same = eventually(seconds(5), || descriptors_and_threads().0 <= settled + 12);
        assert!(same, "from {settled} to {} in 50 rounds", descriptors_and_threads().0);
        let (_reader, into) = pipe();
        lost(soon(pool.submit(say_and_die_at_first { into, deaths: 1 })));
        // What waits when it ends goes with it.
        for _ in 0..50 {
            drop(pool.submit(read { handle: memory("x") }));
        }
        ends_clean(&pool, Shutdown::Now);
    }
    let same = eventually(seconds(5), || descriptors_and_threads() == before);
    assert!(same, "from {before:?} to {:?}", descriptors_and_threads());
}

fn nothing_leaks_in_the_worker(method: StartMethod) {
    let pool = pool(method, 1);
    goes_on(&pool);
    let before = soon(pool.submit(count_descriptors {})).unwrap();
    for n in 0..50 {
        drop(soon(pool.submit(make { text: n.to_string() })).unwrap());
        soon(pool.submit(read { handle: memory("x") })).unwrap();
        assert!(soon(pool.submit(fail_with { handle: memory("x") })).is_err());
        // Taken back before it began, or cancelled after: what it was sent is passed over.
        let cancelled = pool.submit(give_back { handles: (0..20).map(|_| memory("x")).collect() });
        cancelled.cancel();
    }
    goes_on(&pool);
    if pool.stats().workers_lost == 0 {
        assert_eq!(soon(pool.submit(count_descriptors {})).unwrap(), before);
    }
    ends_clean(&pool, Shutdown::Drain);
}

// ---- No room -------------------------------------------------------------------------------------------------------

fn worker_without_room_for_a_handle_fails_that_call_only(method: StartMethod) {
    limit_descriptors(200);
    let pool = pool(method, 1);
    soon(pool.submit(use_up_descriptors {})).unwrap();
    let worker = pids(&pool);
    for count in [1, 60] {
        match soon(pool.submit(read_all { handles: (0..count).map(|_| memory("x")).collect() })) {
            Err(TaskError::Codec(error)) => {
                assert!(matches!(&*error, CodecError::HandlesLost { what, .. } if what == "argument"), "{error:?}");
                assert!(error.to_string().contains("too many open descriptors"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
    goes_on(&pool);
    soon(pool.submit(free_descriptors {})).unwrap();
    assert_eq!(soon(pool.submit(read { handle: memory("there is room") })).unwrap(), "there is room");
    assert_eq!((pids(&pool), pool.stats().workers_lost), (worker, 0), "the same worker");
    ends_clean(&pool, Shutdown::Drain);
}

fn parent_without_room_for_a_handle_fails_that_call_only(method: StartMethod) {
    limit_descriptors(200);
    let pool = pool(method, 1);
    goes_on(&pool);
    fill_up();
    let outcomes = [soon(pool.submit(make { text: "x".to_owned() })).map(|handle| vec![handle]), {
        // Some find room, and go again.
        FILLING.lock().expect("not poisoned").truncate(100);
        soon(pool.submit(make_many { count: 100 }))
    }];
    make_room();
    for outcome in outcomes {
        match outcome {
            Err(TaskError::Codec(error)) => {
                assert!(matches!(&*error, CodecError::HandlesLost { what, .. } if what == "result"), "{error:?}");
                assert!(error.to_string().contains("too many open descriptors"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(content(soon(pool.submit(make { text: "there is room".to_owned() })).unwrap()), "there is room");
    assert_eq!(pool.stats().workers_lost, 0);
    ends_clean(&pool, Shutdown::Drain);
}

#[polypool::task]
fn limit_own_descriptors(to: u64) {
    limit_descriptors(to);
}

/// A user may have no more descriptors on their way, in all processes together, than one process may have open; unless
/// that is a privileged user, of whom nothing is refused and nothing to be seen here.
fn handles_that_the_system_refuses_fail_that_call_only() {
    let pool = pool(StartMethod::Spawn, 1);
    soon(pool.submit(limit_own_descriptors { to: 200 })).unwrap();
    limit_descriptors(200);
    let null = File::open("/dev/null").expect("/dev/null");
    let stuff = || {
        let (here, there) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let refused = (0..2).any(|_| polypool_ipc::send_with_fds(&here, b"x", &[null.as_fd(); 253]).is_err());
        (refused, here, there)
    };
    let stuffed = stuff();
    if !stuffed.0 {
        return;
    }
    let outcomes = [
        (soon(pool.submit(read { handle: memory("x") })).map(|_| ()), "argument"),
        (soon(pool.submit(make { text: "x".to_owned() })).map(|_| ()), "result"),
    ];
    for (outcome, which) in outcomes {
        match outcome {
            Err(TaskError::Codec(error)) => {
                assert!(matches!(&*error, CodecError::HandlesLost { what, .. } if what == which), "{error:?}");
                assert!(error.to_string().contains("on their way"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
    goes_on(&pool);
    drop(stuffed);
    // When there is room again while it waits, it arrives, and what is behind it too. Other tests of the same user may
    // have something on its way just then.
    let arrived = eventually(seconds(30), || {
        let stuffed = stuff();
        let waits = pool.submit(read { handle: memory("in the end") });
        let behind = pool.submit(double { n: 4 });
        drop(stuffed);
        let outcome = soon(waits);
        assert_eq!(soon(behind).unwrap(), 8);
        outcome.is_ok_and(|text| text == "in the end")
    });
    assert!(arrived);
    assert_eq!(pool.stats().workers_lost, 0);
    ends_clean(&pool, Shutdown::Drain);
}

// ---- Elsewhere -----------------------------------------------------------------------------------------------------

/// A value that encodes a part of itself on another thread, out of sight of whoever collects handles.
#[derive(Debug, Deserialize)]
struct Astray(Fd);

impl Serialize for Astray {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = std::thread::scope(|scope| scope.spawn(|| serde_json::to_string(&self.0)).join());
        text.expect("no panic").map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

#[polypool::task]
fn take_astray(value: Astray) {
    drop(value);
}

fn handle_outside_of_a_message_is_an_error_that_says_so(method: StartMethod) {
    let pool = pool(method, 1);
    match soon(pool.submit(take_astray { value: Astray(memory("x")) })) {
        Err(TaskError::Codec(error)) => {
            assert!(matches!(*error, CodecError::EncodeArgument(_)), "{error:?}");
            assert!(error.to_string().contains("can't be written into bytes"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    ends_clean(&pool, Shutdown::Drain);
}

fn handles_on_threads() {
    let pool = ThreadPool::builder().workers(1).build().unwrap();
    let (reader, into) = pipe();
    pool.submit_with(say { into, text: "on a thread".to_owned() }, TaskOptions::new().retries(1)).wait().unwrap();
    assert_eq!(all(reader), "on a thread");
    assert_eq!(content(pool.submit(make { text: "x".to_owned() }).wait().unwrap()), "x");
    // The same trait object, whatever is behind it.
    let pools: [std::sync::Arc<dyn Executor>; 2] =
        [std::sync::Arc::new(pool), std::sync::Arc::new(ProcessPool::builder().workers(1).build().unwrap())];
    for pool in pools {
        assert_eq!(soon(pool.submit(read { handle: memory("either") })).unwrap(), "either");
        pool.shutdown(Shutdown::Drain).wait();
    }
}
