//! Workers that break the protocol. Each costs itself and the call that it has, and never the parent.
//!
//! The program `hostile` plays them, the first time it is started; afterwards, when it is to be so, it is honest.

use std::path::{Path, PathBuf};
use std::time::Instant;

use integration_tests::tasks::double;
use integration_tests::{Row, eventually, millis, rows, seconds};
use polypool::{
    CodecError, Executor, ExecutorExt, ProcessPool, ProcessPoolBuilder, Shutdown, StartMethod, SubmitError, TaskError,
    TaskOptions, WorkerExit,
};

use crate::common::{builder, descriptors_and_threads, ends_clean, goes_on, lost, peak_memory, pids, soon};

pub(crate) const ONCE: &[Row<fn()>] = rows![
    hostile_frame_that_ends_too_early,
    hostile_frame_of_4_gib,
    hostile_frame_of_an_unknown_kind,
    hostile_frame_that_is_not_for_the_parent,
    hostile_answer_to_a_call_it_was_not_given,
    hostile_answer_that_comes_twice,
    hostile_answer_that_cannot_be_decoded_fails_that_call_only,
    hostile_report_that_cannot_be_decoded,
    hostile_results_of_a_chunk_that_are_too_few_or_too_many,
    hostile_garbage_before_the_handshake,
    hostile_answer_before_the_handshake,
    hostile_other_protocol,
    hostile_handshake_that_comes_twice,
    hostile_claims_with_an_answer,
    hostile_claims_without_an_answer,
    hostile_claims_and_a_cancel,
    hostile_start_without_a_claim,
    hostile_silence_ends_with_the_timeout,
    hostile_deafness_ends_with_the_deadline,
    hostile_half_of_a_large_frame,
    hostile_half_of_a_block,
    hostile_block_that_is_longer_than_its_frame,
    hostile_block_that_belongs_nowhere,
    hostile_handles_that_nobody_asked_for,
    hostile_handles_in_the_channel,
    hostile_handles_that_do_not_come,
    hostile_handles_that_are_too_few,
    hostile_handles_that_are_too_many,
    hostile_handles_by_the_billion,
    hostile_handles_in_an_answer_to_another_call,
    hostile_handles_that_are_garbage,
    hostile_position_far_ahead,
    hostile_position_far_behind,
    hostile_garbage_in_the_ring,
    hostile_position_of_its_reading,
    hostile_marks_are_nobodys_trouble,
    hostile_bells_are_nobodys_trouble,
    hostile_end_of_the_socket,
    hostile_end_of_the_socket_behind_an_answer,
    hostile_frames_without_end,
    hostile_words_while_a_caller_looks_for_its_answer,
    hostile_ring_that_it_was_not_given,
    hostile_always_breaks_the_pool_and_says_why,
    hostile_fork_server_breaks_the_pool_and_says_why,
];

/// A folder for the marker by which the program knows that it has been hostile.
struct Once(tempfile::TempDir);

impl Once {
    fn new() -> Self {
        Once(tempfile::tempdir().expect("a folder"))
    }

    fn marker(&self) -> PathBuf {
        self.0.path().join("was hostile")
    }
}

fn hostile(mode: &str, marker: Option<&Path>) -> ProcessPoolBuilder {
    let builder = builder(StartMethod::Spawn, 1)
        .worker_executable(env!("CARGO_BIN_EXE_hostile"))
        .max_message_size(1 << 20)
        .handshake_timeout(seconds(5))
        .env("HOSTILE", mode);
    match marker {
        Some(marker) => builder.env("MARKER", marker),
        None => builder,
    }
}

/// A pool whose first worker is hostile; then `test`; then the parent must be as well as before. Once with a worker
/// that speaks through the socket, and once through rings.
fn first(mode: &str, test: impl Fn(&ProcessPool)) {
    first_through(false, mode, &test);
    first_through_rings(mode, test);
}

/// As [`first`], only through rings.
fn first_through_rings(mode: &str, test: impl Fn(&ProcessPool)) {
    if cfg!(target_os = "linux") {
        first_through(true, mode, &test);
    }
}

fn first_through(rings: bool, mode: &str, test: &dyn Fn(&ProcessPool)) {
    let once = Once::new();
    let (before, memory) = (descriptors_and_threads(), peak_memory());
    let mut builder = hostile(mode, Some(&once.marker()));
    if rings {
        builder = builder.env("RINGS", "yes");
    }
    let pool = builder.build().unwrap();
    test(&pool);
    assert!(once.marker().exists(), "it was hostile");
    goes_on(&pool);
    ends_clean(&pool, Shutdown::Drain);
    drop(pool);
    assert!(peak_memory() < memory + 32, "from {memory} to {} MiB", peak_memory());
    let same = eventually(seconds(5), || descriptors_and_threads() == before);
    assert!(same, "from {before:?} to {:?}", descriptors_and_threads());
}

/// The task of the hostile worker is lost, and the error says that the protocol was broken, in these words.
fn breaks_the_protocol(mode: &str, words: &str) {
    first(mode, |pool| says_how(pool, words));
}

/// The task of the worker is lost, and the error says in these words how the protocol was broken.
fn says_how(pool: &ProcessPool, words: &str) {
    let outcome = soon(pool.submit(double { n: 1 }));
    let text = outcome.as_ref().unwrap_err().to_string();
    match lost(outcome).exit {
        WorkerExit::Protocol(what) => assert!(what.contains(words), "{what}"),
        other => panic!("{other:?}"),
    }
    assert!(text.contains("broke the protocol") && text.contains(words), "{text}");
    assert_eq!(pool.stats().workers_lost, 1);
}

/// The worker ends, and its task is lost.
fn ends(mode: &str) {
    first(mode, |pool| {
        assert_eq!(lost(soon(pool.submit(double { n: 1 }))).exit, WorkerExit::Code(0));
    });
}

/// Nobody notices the hostile worker, because it had no call yet or had not begun with it.
fn goes_unnoticed(mode: &str) {
    first(mode, |pool| {
        assert_eq!(soon(pool.submit(double { n: 4 })).unwrap(), 8);
        assert!(eventually(seconds(30), || pool.stats().workers_lost == 1), "it is replaced");
    });
}

fn hostile_frame_that_ends_too_early() {
    ends("truncated");
}

fn hostile_frame_of_4_gib() {
    breaks_the_protocol("huge", "4294967295 bytes");
}

fn hostile_frame_of_an_unknown_kind() {
    breaks_the_protocol("unknown kind", "unknown kind 99");
}

fn hostile_frame_that_is_not_for_the_parent() {
    breaks_the_protocol("call", "not expected");
}

fn hostile_answer_to_a_call_it_was_not_given() {
    breaks_the_protocol("wrong call", "a call that it does not have");
}

fn hostile_answer_that_comes_twice() {
    // The first one counts; the second one costs the worker, but no task.
    goes_unnoticed("twice");
}

fn hostile_answer_that_cannot_be_decoded_fails_that_call_only() {
    first("undecodable", |pool| {
        for _ in 0..3 {
            match soon(pool.submit(double { n: 1 })) {
                Err(TaskError::Codec(error)) => assert!(matches!(*error, CodecError::DecodeResult(_)), "{error:?}"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((pool.stats().workers_lost, pool.stats().workers[0].completed), (0, 3), "the same worker");
        pids(pool).into_iter().for_each(|pid| crate::common::signal(pid, rustix::process::Signal::KILL));
        assert!(eventually(seconds(30), || pool.stats().workers_lost == 1));
    });
}

fn hostile_results_of_a_chunk_that_are_too_few_or_too_many() {
    for (mode, words) in [("one result of a chunk", "1 results for 4"), ("a result too many", "5 results for 4")] {
        first(mode, |pool| {
            let outcomes: Vec<_> = pool.map((0..8).map(|n| double { n })).chunk_size(4).blocking().collect();
            assert_eq!(outcomes.len(), 8, "{mode}: one for each element, whatever came");
            for outcome in outcomes {
                let error = outcome.expect_err("of a worker that lies");
                assert!(error.to_string().contains(words), "{mode}: {error}");
            }
            assert_eq!(pool.stats().workers_lost, 0, "an answer that makes no sense costs its call");
            pids(pool).into_iter().for_each(|pid| crate::common::signal(pid, rustix::process::Signal::KILL));
            assert!(eventually(seconds(30), || pool.stats().workers_lost == 1));
        });
    }
}

fn hostile_report_that_cannot_be_decoded() {
    first("undecodable report", |pool| {
        let outcome = soon(pool.submit(double { n: 1 }));
        assert!(matches!(lost(outcome).exit, WorkerExit::Protocol(_)));
    });
}

fn hostile_garbage_before_the_handshake() {
    goes_unnoticed("garbage first");
}

fn hostile_answer_before_the_handshake() {
    goes_unnoticed("answer first");
}

fn hostile_other_protocol() {
    goes_unnoticed("other protocol");
}

fn hostile_handshake_that_comes_twice() {
    goes_unnoticed("ready twice");
}

fn hostile_claims_with_an_answer() {
    first("claims, answer", |pool| {
        for n in 0..3 {
            assert_eq!(soon(pool.submit(double { n })).unwrap(), 2 * n, "what it says counts, not what it claims");
        }
        pids(pool).into_iter().for_each(|pid| crate::common::signal(pid, rustix::process::Signal::KILL));
        assert!(eventually(seconds(30), || pool.stats().workers_lost == 1));
    });
}

fn hostile_claims_without_an_answer() {
    first("claims, exit", |pool| {
        assert_eq!(lost(soon(pool.submit(double { n: 1 }))).exit, WorkerExit::Code(7));
    });
}

fn hostile_claims_and_a_cancel() {
    first("claims, silence", |pool| {
        let options = TaskOptions::new().deadline(Instant::now() + millis(800));
        let task = pool.submit_with(double { n: 1 }, options);
        assert!(matches!(soon(task), Err(TaskError::DeadlineExceeded)));
        assert!(eventually(seconds(30), || pool.stats().workers_lost == 1), "it is killed");
    });
}

/// By its word it runs the call, by the claim it doesn't. The call must end all the same, and may not run twice.
fn hostile_start_without_a_claim() {
    first("started, exit", |pool| {
        assert_eq!(lost(soon(pool.submit(double { n: 1 }))).exit, WorkerExit::Code(7));
    });
}

fn hostile_silence_ends_with_the_timeout() {
    first("silence", |pool| {
        let task = pool.submit_with(double { n: 1 }, TaskOptions::new().timeout(millis(300)));
        assert!(matches!(soon(task), Err(TaskError::TimedOut { .. })));
        assert!(eventually(seconds(30), || pool.stats().workers_lost == 1), "it is killed");
    });
}

fn hostile_deafness_ends_with_the_deadline() {
    first("deaf", |pool| {
        let task = pool.submit_with(double { n: 1 }, TaskOptions::new().deadline(Instant::now() + millis(800)));
        assert!(matches!(soon(task), Err(TaskError::DeadlineExceeded)));
        pids(pool).into_iter().for_each(|pid| crate::common::signal(pid, rustix::process::Signal::KILL));
        assert!(eventually(seconds(30), || pool.stats().workers_lost == 1));
    });
}

fn hostile_half_of_a_large_frame() {
    ends("half");
}

fn hostile_half_of_a_block() {
    ends("half a block");
}

fn hostile_block_that_is_longer_than_its_frame() {
    breaks_the_protocol("more block than frame", "92 bytes with a block of 93");
}

fn hostile_block_that_belongs_nowhere() {
    first("block for nobody", |pool| {
        for _ in 0..3 {
            match soon(pool.submit(double { n: 1 })) {
                Err(TaskError::Codec(error)) => assert!(matches!(*error, CodecError::DecodeResult(_)), "{error:?}"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((pool.stats().workers_lost, pool.stats().workers[0].completed), (0, 3), "the same worker");
        pids(pool).into_iter().for_each(|pid| crate::common::signal(pid, rustix::process::Signal::KILL));
        assert!(eventually(seconds(30), || pool.stats().workers_lost == 1));
    });
}

/// The worker answers rightly, and sends hundreds of descriptors with it that no answer speaks of.
fn sends_handles_in_vain(mode: &str) {
    first(mode, |pool| {
        let before = descriptors_and_threads().0;
        for n in 0..3 {
            assert_eq!(soon(pool.submit(double { n })).unwrap(), 2 * n);
        }
        let open = descriptors_and_threads().0;
        assert!(open < before + 32, "from {before} to {open} for one worker");
        assert_eq!(pool.stats().workers_lost, 0, "nobody has noticed");
        pids(pool).into_iter().for_each(|pid| crate::common::signal(pid, rustix::process::Signal::KILL));
        assert!(eventually(seconds(30), || pool.stats().workers_lost == 1));
    });
}

fn hostile_handles_that_nobody_asked_for() {
    sends_handles_in_vain("handles unasked");
}

fn hostile_handles_in_the_channel() {
    sends_handles_in_vain("handles in the channel");
}

fn hostile_handles_that_do_not_come() {
    breaks_the_protocol("handles missing", "without the handles in it");
}

fn hostile_handles_that_are_too_few() {
    breaks_the_protocol("fewer handles", "1 in a parcel that should have 3");
}

fn hostile_handles_that_are_too_many() {
    breaks_the_protocol("more handles", "253 in a parcel that should have 1");
}

fn hostile_handles_by_the_billion() {
    breaks_the_protocol("4 billion handles", "4294967295 descriptors");
}

fn hostile_handles_in_an_answer_to_another_call() {
    breaks_the_protocol("handles for another", "a call that it does not have");
}

fn hostile_handles_that_are_garbage() {
    breaks_the_protocol("no parcel", "without the handles in it");
}

fn hostile_position_far_ahead() {
    first_through_rings("head far ahead", |pool| says_how(pool, "shared memory"));
}

fn hostile_position_far_behind() {
    first_through_rings("head far behind", |pool| says_how(pool, "shared memory"));
}

fn hostile_garbage_in_the_ring() {
    first_through_rings("ring of garbage", |pool| says_how(pool, "a frame of"));
}

fn hostile_position_of_its_reading() {
    // Noticed with the next call that is written.
    first_through_rings("tail far ahead", |pool| {
        let task = pool.submit_with(double { n: 1 }, TaskOptions::new().deadline(Instant::now() + millis(800)));
        assert!(matches!(soon(task), Err(TaskError::DeadlineExceeded)));
        assert!(eventually(seconds(30), || pool.stats().workers_lost == 1), "it is killed");
    });
}

/// The answers are right, and nothing hangs.
fn is_nobodys_trouble(mode: &str) {
    first_through_rings(mode, |pool| {
        for n in 0..3 {
            assert_eq!(soon(pool.submit(double { n })).unwrap(), 2 * n);
        }
        assert_eq!(pool.stats().workers_lost, 0, "nobody has noticed");
        pids(pool).into_iter().for_each(|pid| crate::common::signal(pid, rustix::process::Signal::KILL));
        assert!(eventually(seconds(30), || pool.stats().workers_lost == 1));
    });
}

fn hostile_marks_are_nobodys_trouble() {
    is_nobodys_trouble("marks");
}

fn hostile_bells_are_nobodys_trouble() {
    is_nobodys_trouble("bells");
}

fn hostile_end_of_the_socket() {
    first("hangs up", |pool| {
        let outcome = soon(pool.submit(double { n: 1 }));
        assert_eq!(lost(outcome).exit, WorkerExit::Signal(9), "it is of no more use");
    });
}

fn hostile_end_of_the_socket_behind_an_answer() {
    goes_unnoticed("hangs up behind its answer");
}

/// A caller whose calls were answered quickly looks for the next answer itself, but never for longer than it wants to
/// wait, whatever comes instead.
fn hostile_words_while_a_caller_looks_for_its_answer() {
    for mode in ["answers, then endless", "answers, then drops"] {
        first(mode, |pool| {
            for n in 0..20 {
                assert_eq!(soon(pool.submit(double { n })).unwrap(), 2 * n);
            }
            let mut task = pool.submit(double { n: 1 });
            assert!(task.wait_timeout(millis(30)).is_err(), "there is no answer");
            assert!(task.cancel());
            assert!(eventually(seconds(30), || pool.stats().workers_lost == 1), "it is killed");
        });
    }
}

fn hostile_frames_without_end() {
    first("endless", |pool| {
        let task = pool.submit_with(double { n: 1 }, TaskOptions::new().deadline(Instant::now() + millis(800)));
        assert!(matches!(soon(task), Err(TaskError::DeadlineExceeded)));
        assert!(eventually(seconds(30), || pool.stats().workers_lost == 1), "it is killed");
    });
}

fn hostile_ring_that_it_was_not_given() {
    let pool = hostile("rings it was not given", None).ring_size(0).build().unwrap();
    match soon(pool.submit(double { n: 1 })) {
        Err(TaskError::Rejected(SubmitError::Broken(reason))) => assert!(reason.contains("not given"), "{reason}"),
        other => panic!("{other:?}"),
    }
    ends_clean(&pool, Shutdown::Drain);
}

fn hostile_always_breaks_the_pool_and_says_why() {
    for (mode, words) in [
        ("garbage first", "broke the protocol"),
        ("other protocol", "version 99"),
        ("answer first", "does not have"),
        ("ready twice", "not expected"),
    ] {
        let pool = hostile(mode, None).build().unwrap();
        match soon(pool.submit(double { n: 1 })) {
            Err(TaskError::Rejected(SubmitError::Broken(reason))) => {
                assert!(reason.contains(words), "{mode}: {reason}");
            }
            other => panic!("{mode}: {other:?}"),
        }
        ends_clean(&pool, Shutdown::Drain);
    }
}

fn hostile_fork_server_breaks_the_pool_and_says_why() {
    if !cfg!(target_os = "linux") {
        return;
    }
    for (mode, words) in [
        ("garbage first", "unknown kind"),
        ("server without a process", "no pidfd"),
        ("server that fails", "fork server"),
        ("server that is silent", "did not answer"),
    ] {
        let pool = hostile(mode, None).start_method(StartMethod::ForkServer).handshake_timeout(millis(300));
        let pool = pool.build().unwrap();
        match soon(pool.submit(double { n: 1 })) {
            Err(TaskError::Rejected(SubmitError::Broken(reason))) => {
                assert!(reason.contains(words), "{mode}: {reason}");
            }
            other => panic!("{mode}: {other:?}"),
        }
        ends_clean(&pool, Shutdown::Drain);
    }
}
