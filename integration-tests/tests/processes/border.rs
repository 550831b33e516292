//! What crosses the border: arguments, results, errors of the codec, sizes, signals during a read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use integration_tests::tasks::{double, pass};
use integration_tests::{Board, Gate, Row, Traces, eventually, seconds};
use polypool::{CodecError, ExecutorExt, Outcome, Progress, Shutdown, StartMethod, TaskError, TaskOptions, context};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use serde_json::{Value, json};

use crate::both;
use crate::common::{
    Fault, Faulty, builder, ends_clean, fail_with_faulty, goes_on, make_faulty, pid, pool, signal, soon, take_faulty,
};

pub(crate) const ROWS: &[Row<fn()>] = both![
    p16_signals_do_not_end_a_read,
    p49_argument_that_cannot_be_encoded_fails_that_call_only,
    p50_result_that_cannot_be_encoded_costs_no_worker,
    p51_argument_that_cannot_be_decoded_fails_that_call_only,
    result_that_cannot_be_decoded_fails_that_call_only,
    p52_large_payloads_there_and_back,
    p52_too_large_is_refused_and_the_pool_goes_on,
    tiny_message_size_still_reports_panics,
    p56_argument_is_released_before_the_worker_waits,
    everything_serde_describes_travels,
    byte_buffers_travel_as_one_block,
    large_buffers_find_their_places,
    large_buffers_survive_the_death_of_their_worker,
    shared_buffers_cross_and_stay_the_callers,
    context_in_a_worker,
    await_of_the_cancellation_ends_with_the_task,
    progress_crosses_the_border,
    input_of_a_worker_is_empty,
];

/// Installs a handler that notes the signal and does nothing else.
#[polypool::task]
fn note_sigusr1() -> u32 {
    let _ = handle_sigusr1();
    std::process::id()
}

fn handle_sigusr1() -> Arc<AtomicBool> {
    let noted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, noted.clone()).expect("a handler of SIGUSR1");
    noted
}

fn p16_signals_do_not_end_a_read(method: StartMethod) {
    let board = Board::new();
    let noted = handle_sigusr1();
    let pool = pool(method, 1);
    let worker = soon(pool.submit(note_sigusr1 {})).unwrap();
    let gate = board.gate("hold");
    let mut task = pool.submit(pass { gate: gate.clone(), value: 7 });
    gate.wait_for_arrivals(1);

    let signals = std::thread::spawn(move || {
        for _ in 0..50 {
            signal(worker, Signal::USR1);
            noted.store(false, Ordering::SeqCst);
            signal(std::process::id(), Signal::USR1);
            assert!(eventually(seconds(5), || noted.load(Ordering::SeqCst)), "it was delivered");
        }
        gate.open();
    });
    // The main thread, which the system gives the signals to, blocks here for the result.
    assert_eq!(task.wait_timeout(seconds(30)).unwrap().unwrap(), 7);
    signals.join().unwrap();
    assert!(matches!(task.wait(), Err(TaskError::OutcomeTaken)), "it arrives once");

    // And while the worker waits for its next call.
    for _ in 0..50 {
        signal(worker, Signal::USR1);
    }
    assert_eq!(soon(pool.submit(pid {})).unwrap(), worker);
}

#[track_caller]
fn codec<T: std::fmt::Debug>(outcome: Outcome<T>) -> CodecError {
    match outcome {
        Err(TaskError::Codec(error)) => *error,
        other => panic!("an error of the codec, not {other:?}"),
    }
}

fn p49_argument_that_cannot_be_encoded_fails_that_call_only(method: StartMethod) {
    let pool = pool(method, 1);
    let before = soon(pool.submit(pid {})).unwrap();
    for (fault, words) in [(Fault::Encode, "it won't be packed"), (Fault::PanicInEncode, "packing it panics")] {
        let error = codec(soon(pool.submit(take_faulty { value: Faulty::new(fault) })));
        assert!(matches!(&error, CodecError::EncodeArgument(text) if text.contains(words)), "{error:?}");
    }
    assert_eq!(soon(pool.submit(pid {})).unwrap(), before);
}

fn p50_result_that_cannot_be_encoded_costs_no_worker(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 2);
    let before = both_pids(&board, "before", &pool);
    for _ in 0..20 {
        let error = codec(soon(pool.submit(make_faulty { fault: Fault::Encode })));
        assert!(matches!(&error, CodecError::EncodeResult(text) if text.contains("it won't be packed")), "{error:?}");
    }
    let error = codec(soon(pool.submit(make_faulty { fault: Fault::PanicInEncode })));
    assert!(error.to_string().contains("packing it panics"), "{error}");
    assert_eq!(both_pids(&board, "after", &pool), before, "the same workers throughout");
    ends_clean(&pool, Shutdown::Drain);
}

fn both_pids(board: &Board, name: &str, pool: &polypool::ProcessPool) -> BTreeSet<u32> {
    let gate = board.gate(name);
    let tasks = [0, 1].map(|_| pool.submit(crate::common::pass_pid { gate: gate.clone() }));
    gate.wait_for_arrivals(2);
    gate.open();
    tasks.into_iter().map(|task| soon(task).unwrap()).collect()
}

fn p51_argument_that_cannot_be_decoded_fails_that_call_only(method: StartMethod) {
    let pool = pool(method, 1);
    let before = soon(pool.submit(pid {})).unwrap();
    for (fault, words) in [(Fault::Decode, "it won't be unpacked"), (Fault::PanicInDecode, "unpacking it panics")] {
        let error = codec(soon(pool.submit(take_faulty { value: Faulty::new(fault) })));
        assert!(matches!(&error, CodecError::DecodeArgument(text) if text.contains(words)), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(soon(pool.submit(pid {})).unwrap(), before, "the worker lives on");
}

fn result_that_cannot_be_decoded_fails_that_call_only(method: StartMethod) {
    let pool = pool(method, 1);
    let before = soon(pool.submit(pid {})).unwrap();
    for (fault, words) in [(Fault::Decode, "it won't be unpacked"), (Fault::PanicInDecode, "unpacking it panics")] {
        for outcome in [
            soon(pool.submit(make_faulty { fault })).map(drop),
            soon(pool.submit(fail_with_faulty { fault })).map(drop),
        ] {
            let error = codec(outcome);
            assert!(matches!(&error, CodecError::DecodeResult(text) if text.contains(words)), "{error:?}");
        }
    }
    assert_eq!(soon(pool.submit(pid {})).unwrap(), before);
}

/// The bytes, each turned over.
#[polypool::task]
fn turn_over(bytes: Vec<u8>) -> Vec<u8> {
    bytes.into_iter().map(|byte| !byte).collect()
}

#[polypool::task]
fn turn_over_or_fail(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    Ok(turn_over(bytes))
}

#[polypool::task]
fn length(bytes: Vec<u8>) -> usize {
    bytes.len()
}

#[polypool::task]
fn produce(length: usize) -> Vec<u8> {
    vec![7; length]
}

fn p52_large_payloads_there_and_back(method: StartMethod) {
    const SIZE: usize = 100 << 20;
    let pool = pool(method, 1);
    let pattern = |at: usize| (at.wrapping_mul(2_654_435_761) >> 13) as u8;
    let bytes: Vec<u8> = (0..SIZE).map(pattern).collect();
    let back = pool.submit(turn_over { bytes }).wait().unwrap();
    assert_eq!(back.len(), SIZE);
    assert!(back.iter().enumerate().all(|(at, &byte)| !byte == pattern(at)), "equal bytes");
    goes_on(&pool);
}

fn p52_too_large_is_refused_and_the_pool_goes_on(method: StartMethod) {
    let pool = builder(method, 1).max_message_size(1_000_000).build().unwrap();
    let before = soon(pool.submit(pid {})).unwrap();
    for (error, direction) in [
        (codec(soon(pool.submit(length { bytes: vec![1; 1_000_001] }))), "argument"),
        (codec(soon(pool.submit(produce { length: 1_000_001 }))), "result"),
    ] {
        let CodecError::TooLarge { what, size, limit } = &error else { panic!("{error:?}") };
        assert_eq!((what.as_str(), *limit), (direction, 1_000_000));
        assert!(*size > 1_000_000);
        assert!(error.to_string().contains("max_message_size"), "it names what helps: {error}");
    }
    assert_eq!(soon(pool.submit(length { bytes: vec![1; 990_000] })).unwrap(), 990_000);
    assert_eq!(soon(pool.submit(produce { length: 990_000 })).unwrap().len(), 990_000);
    assert_eq!(soon(pool.submit(pid {})).unwrap(), before);
}

fn tiny_message_size_still_reports_panics(method: StartMethod) {
    let pool = builder(method, 1).max_message_size(16).build().unwrap();
    assert_eq!(soon(pool.submit(double { n: 4 })).unwrap(), 8);
    let error = codec(soon(pool.submit(length { bytes: vec![0; 100] })));
    assert!(matches!(error, CodecError::TooLarge { limit: 16, .. }), "{error:?}");
    // Longer than any slack, and cut inside of a character.
    match soon(pool.submit(panic_at_length { length: 3 << 20 })) {
        Err(TaskError::Panicked(report)) => {
            let message = report.message.unwrap();
            assert!(message.len() > 1_000 && message.starts_with("ü"), "{} bytes", message.len());
        }
        other => panic!("{other:?}"),
    }
    goes_on(&pool);
}

#[polypool::task]
fn panic_at_length(length: usize) -> u8 {
    panic!("ü{}", "ü€".repeat(length / 5))
}

/// Says when it is dropped, and where.
#[derive(Serialize, Deserialize)]
struct Reporter(Traces);

impl Drop for Reporter {
    fn drop(&mut self) {
        self.0.leave(std::process::id().to_string());
    }
}

#[polypool::task]
fn hold(value: Reporter) -> u32 {
    let _ = &value;
    std::process::id()
}

#[polypool::task]
async fn hold_async(value: Reporter) -> u32 {
    tokio::task::yield_now().await;
    let _ = &value;
    std::process::id()
}

fn p56_argument_is_released_before_the_worker_waits(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 1);
    let workers = [
        soon(pool.submit(hold { value: Reporter(board.traces()) })).unwrap(),
        soon(pool.submit(hold_async { value: Reporter(board.traces()) })).unwrap(),
    ];
    // No further task is sent.
    let reported = || board.traces().all().iter().filter(|text| **text == workers[0].to_string()).count();
    assert!(eventually(seconds(1), || reported() == 2), "{:?}", board.traces().all());
    assert_eq!(workers[0], workers[1]);
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum InternallyTagged {
    Circle { radius: f64 },
    Square { side: u32, label: Option<String> },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", content = "c")]
enum AdjacentlyTagged {
    Nothing,
    Pair(i8, String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(i64),
    Text(String),
    Fields { a: u8 },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Inner {
    depth: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Awkward {
    json: Value,
    #[serde(flatten)]
    inner: Inner,
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
    internally: Vec<InternallyTagged>,
    adjacently: Vec<AdjacentlyTagged>,
    untagged: Vec<Untagged>,
    unit: (),
    nested: Option<Option<u8>>,
    big: u128,
    letter: char,
    blob: Vec<u8>,
}

#[polypool::task]
fn echo(value: Awkward) -> Awkward {
    value
}

#[polypool::task]
fn echo_json(value: Value) -> Result<Value, Value> {
    if value.is_null() { Err(value) } else { Ok(value) }
}

fn everything_serde_describes_travels(method: StartMethod) {
    let pool = pool(method, 1);
    let value = Awkward {
        json: json!({"list": [1, -2, 2.5, null, true, "text", {}], "max": u64::MAX, "min": i64::MIN}),
        inner: Inner { depth: 3, note: None },
        more: BTreeMap::from([("extra".to_owned(), json!([1, {"a": null}]))]),
        internally: vec![
            InternallyTagged::Circle { radius: 1.5 },
            InternallyTagged::Square { side: 2, label: Some("s".into()) },
        ],
        adjacently: vec![AdjacentlyTagged::Nothing, AdjacentlyTagged::Pair(-7, "p".into())],
        untagged: vec![Untagged::Number(-1), Untagged::Text("t".into()), Untagged::Fields { a: 9 }],
        unit: (),
        nested: Some(Some(1)),
        big: u128::MAX,
        letter: 'ß',
        blob: (0..=255).collect(),
    };
    assert_eq!(soon(pool.submit(echo { value: value.clone() })).unwrap(), value);
    assert_eq!(soon(pool.submit(echo_json { value: value.json.clone() })).unwrap(), Ok(value.json));
    assert_eq!(soon(pool.submit(echo_json { value: Value::Null })).unwrap(), Err(Value::Null));
}

fn byte_buffers_travel_as_one_block(method: StartMethod) {
    // Element by element, each 0xFF takes two bytes.
    let pool = builder(method, 1).max_message_size((1 << 20) + (1 << 10)).build().unwrap();
    let full = || vec![0xFF_u8; 1 << 20];
    assert!(soon(pool.submit(turn_over { bytes: full() })).unwrap().iter().all(|&byte| byte == 0));
    assert_eq!(soon(pool.submit(turn_over { bytes: vec![0; 1 << 20] })).unwrap(), full());
    assert_eq!(soon(pool.submit(turn_over_or_fail { bytes: vec![0; 1 << 20] })).unwrap(), Ok(full()));
}

/// Each buffer, and how long it is.
type Told = Result<Option<ByteBuf>, String>;

#[polypool::task]
fn tell(which: u8, one: Vec<u8>, n: u64, two: ByteBuf, three: Option<ByteBuf>) -> Told {
    let all = [one.into(), two, three.unwrap_or_default()];
    match which {
        0..3 => Ok(Some(all[usize::from(which)].clone())),
        3 => Ok(None),
        _ => Err(format!("{n}: {:?}", all.map(|bytes| (bytes.len(), bytes.first().copied())))),
    }
}

fn large_buffers_find_their_places(method: StartMethod) {
    const SMALL: usize = 10;
    const LARGE: usize = 3 << 20;
    for size in [0, 4 << 10, 256 << 10] {
        let pool = builder(method, 1).ring_size(size).build().unwrap();
        for lengths in [[LARGE, SMALL, SMALL], [SMALL, LARGE, 0], [SMALL, 0, LARGE], [LARGE; 3], [0; 3]] {
            let [one, two, three] = [0, 1, 2].map(|n| vec![n as u8; lengths[n]]);
            let told = |which: u8| {
                let three = Some(ByteBuf::from(three.clone()));
                soon(pool.submit(tell { which, one: one.clone(), n: 7, two: two.clone().into(), three })).unwrap()
            };
            for (which, bytes) in (0..).zip([&one, &two, &three]) {
                let back = told(which).unwrap().unwrap();
                assert!(back == *bytes, "{size}, {lengths:?}, {which}: {} bytes", back.len());
            }
            assert_eq!(told(3), Ok(None));
            let each = [0, 1, 2].map(|n| (lengths[n], (lengths[n] > 0).then_some(n as u8)));
            assert_eq!(told(4), Err(format!("7: {each:?}")));
        }
        ends_clean(&pool, Shutdown::Drain);
    }
}

/// Gives back the second half of a buffer that is shared on the user's side of the border.
#[polypool::task]
fn second_half(bytes: Bytes) -> Bytes {
    bytes.slice(bytes.len() / 2..)
}

fn shared_buffers_cross_and_stay_the_callers(method: StartMethod) {
    const SIZE: usize = 3 << 20;
    let pool = pool(method, 1);
    let whole: Bytes = (0..SIZE).map(|n| (n % 251) as u8).collect();
    // Whole and shared, a part of it, one of its own, one that is encoded, none.
    let parts = [whole.clone(), whole.slice(7..SIZE / 2), whole.to_vec().into(), whole.slice(..10), Bytes::new()];
    for bytes in parts {
        let back = soon(pool.submit(second_half { bytes: bytes.clone() })).unwrap();
        assert!(back == bytes[bytes.len() / 2..], "{} bytes of {}", back.len(), bytes.len());
    }
    assert!(whole.is_unique(), "nobody holds it any more");
    assert!(whole.iter().enumerate().all(|(n, byte)| *byte == (n % 251) as u8));
}

/// Dies of its first try, and gives the buffer back in the next one.
#[polypool::task]
fn survive(bytes: Vec<u8>) -> Vec<u8> {
    if context().attempt() == 0 {
        std::process::abort();
    }
    bytes
}

fn large_buffers_survive_the_death_of_their_worker(method: StartMethod) {
    let pool = pool(method, 1);
    let bytes: Vec<u8> = (0..5 << 20).map(|n: u32| (n >> 7) as u8).collect();
    let task = pool.submit_with(survive { bytes: bytes.clone() }, TaskOptions::new().retries(1));
    assert!(soon(task).unwrap() == bytes);
    // Ended while it is on its way, or while it waits: the pool goes on, and so does the buffer's memory.
    for n in 0..20 {
        let task = pool.submit(turn_over { bytes: vec![n; 5 << 20] });
        let next = pool.submit(turn_over { bytes: vec![n; 5 << 20] });
        task.cancel();
        assert!(soon(next).unwrap().iter().all(|byte| *byte == !n));
    }
    goes_on(&pool);
}

#[polypool::task]
async fn what_the_context_says() -> (Option<u64>, Option<String>, u32, bool) {
    let name = context().name().map(std::borrow::Cow::into_owned);
    tokio::task::yield_now().await;
    let id = context().id().map(|id| id.to_string().parse().expect("a number"));
    (id, name, context().attempt(), context().is_cancelled())
}

fn context_in_a_worker(method: StartMethod) {
    let pool = pool(method, 1);
    let (id, name, attempt, cancelled) = soon(pool.submit(what_the_context_says {})).unwrap();
    assert!(id.is_some());
    assert!(name.is_some_and(|name| name.ends_with("what_the_context_says")));
    assert_eq!((attempt, cancelled), (0, false));
}

/// Starts a thread that waits until nobody waits for this task any more, and ends.
#[polypool::task]
fn leave_a_waiter_behind(traces: Traces) {
    let context = context();
    let (sender, waits) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut cancelled = std::pin::pin!(context.cancelled());
        futures_ext::block_on(std::future::poll_fn(|cx| {
            let poll = cancelled.as_mut().poll(cx);
            let _ = sender.send(poll.is_pending());
            poll
        }));
        traces.leave("went on");
    });
    assert!(waits.recv().expect("it polls"), "it waits, as nobody has cancelled");
}

fn await_of_the_cancellation_ends_with_the_task(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 1);
    soon(pool.submit(leave_a_waiter_behind { traces: board.traces() })).unwrap();
    assert_eq!(board.traces().wait_for(1), ["went on"]);
}

/// Reports a thousand times in a row, and waits at a gate.
#[polypool::task]
fn report_a_lot(gate: Gate) {
    for done in 1..=1_000 {
        context().report_progress(done, 1_000);
    }
    gate.pass();
}

fn progress_crosses_the_border(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 1);
    let gate = board.gate("hold");
    let task = pool.submit_with(report_a_lot { gate: gate.clone() }, TaskOptions::new().timeout(seconds(50)));
    gate.wait_for_arrivals(1);
    let last = Some(Progress { done: 1_000, total: 1_000 });
    assert!(eventually(seconds(5), || task.progress() == last), "{:?}", task.progress());
    assert!(task.is_running());
    gate.open();
    soon(task).unwrap();
}

#[polypool::task]
fn read_input() -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::stdin(), &mut bytes).expect("readable");
    bytes
}

fn input_of_a_worker_is_empty(method: StartMethod) {
    let pool = pool(method, 1);
    for _ in 0..2 {
        assert_eq!(soon(pool.submit(read_input {})).unwrap(), b"");
    }
    goes_on(&pool);
}
