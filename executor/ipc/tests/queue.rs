//! Queues: what each operation promises, in one process and between several, some of which are killed.
#![cfg(any(target_os = "linux", target_os = "android"))]

#[path = "common/family.rs"]
mod family;

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use family::{Child, Peer, child};
use futures_core::Stream;
use polypool_ipc::{
    ByteQueue, CodecError, Fd, GetError, JoinableQueue, PutError, PutFailure, Queue, QueueOptions, TooManyDone, pack,
    unpack,
};
use serde::{Deserialize, Serialize};

polypool_ipc::before_main!(roles);

fn roles() {
    family::run_roles(&[
        ("echo", echo),
        ("putter", putter),
        ("getter", getter),
        ("worker", worker),
        ("idle worker", idle_worker),
        ("blocked", blocked),
    ]);
}

const SHORT: Duration = Duration::from_millis(30);
const LONG: Duration = Duration::from_secs(30);

/// Runs a future on this thread; panics if it takes too long.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    let until = Instant::now() + LONG;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        assert!(Instant::now() < until, "a future is not ready after {LONG:?}");
        thread::park_timeout(LONG);
    }
}

fn failure<T>(outcome: Result<(), PutError<T>>) -> (T, PutFailure) {
    let error = outcome.expect_err("it was put");
    (error.item, error.reason)
}

// ---- Python's own tests (conformance S4) ----

#[test]
fn put_refuses_when_full_with_and_without_a_timeout() {
    let queue = Queue::bounded(6).unwrap();
    assert!(queue.is_empty() && !queue.is_full());
    for n in 0..6 {
        match n % 3 {
            0 => queue.put(n).unwrap(),
            1 => queue.try_put(n).unwrap(),
            _ => queue.put_timeout(n, SHORT).unwrap(),
        }
    }
    assert!(!queue.is_empty() && queue.is_full());
    assert!(matches!(failure(queue.try_put(7)), (7, PutFailure::Full)));
    let start = Instant::now();
    assert!(matches!(failure(queue.put_timeout(7, SHORT)), (7, PutFailure::TimedOut)));
    assert!(start.elapsed() >= SHORT);
    assert!(matches!(failure(queue.put_timeout(7, Duration::ZERO)), (7, PutFailure::TimedOut)));
    assert_eq!(queue.len(), 6);
    // A put that waits goes on with the next get.
    let waiting = thread::spawn({
        let queue = queue.clone();
        move || queue.put(6)
    });
    for n in 0..7 {
        assert_eq!(queue.get_timeout(LONG).unwrap(), n);
    }
    waiting.join().unwrap().unwrap();
}

#[test]
fn get_refuses_when_empty_with_and_without_a_timeout() {
    let queue = Queue::<String>::unbounded().unwrap();
    assert!(matches!(queue.try_get(), Err(GetError::Empty)));
    let start = Instant::now();
    assert!(matches!(queue.get_timeout(SHORT), Err(GetError::TimedOut)));
    assert!(start.elapsed() >= SHORT);
    assert!(matches!(queue.try_get_many(5), Err(GetError::Empty)));
    let waiting = thread::spawn({
        let queue = queue.clone();
        move || queue.get()
    });
    queue.put("at last".to_owned()).unwrap();
    assert_eq!(waiting.join().unwrap().unwrap(), "at last");
    assert!(queue.is_empty());
}

#[test]
fn a_message_is_got_into_a_buffer_in_all_forms() {
    let queue = ByteQueue::unbounded().unwrap();
    let mut buffer = b"old".to_vec();
    assert!(matches!(queue.try_get_into(&mut buffer), Err(GetError::Empty)));
    assert!(buffer.is_empty());
    assert!(matches!(queue.get_into_timeout(&mut buffer, SHORT), Err(GetError::TimedOut)));
    assert!(poll(&mut Box::pin(queue.get_into_async(&mut buffer)), Waker::noop()).is_pending());
    for message in [b"one", b"two", b"six", b"ten"] {
        queue.put(message).unwrap();
    }
    queue.try_get_into(&mut buffer).unwrap();
    assert_eq!(buffer, b"one");
    queue.get_into_timeout(&mut buffer, LONG).unwrap();
    assert_eq!(buffer, b"two");
    block_on(queue.get_into_async(&mut buffer)).unwrap();
    assert_eq!(buffer, b"six");
    queue.get_into(&mut buffer).unwrap();
    assert_eq!(buffer, b"ten");
}

#[test]
fn the_length_counts_what_was_put_and_not_got() {
    let queue = Queue::unbounded().unwrap();
    for n in 0..1_000 {
        assert_eq!(queue.len(), n);
        queue.put(n).unwrap();
    }
    assert_eq!(queue.get().unwrap(), 0);
    assert_eq!(queue.len(), 999);
    assert_eq!(queue.capacity(), None);
}

/// An item that can't be encoded, for the reason it gives.
#[derive(Debug, Clone, PartialEq)]
enum Awkward {
    Good(u32),
    Bad,
}

impl Serialize for Awkward {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Awkward::Good(n) => serializer.serialize_u32(*n),
            Awkward::Bad => Err(serde::ser::Error::custom("not today")),
        }
    }
}

/// Odd numbers can't be decoded.
impl<'de> Deserialize<'de> for Awkward {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            n if n % 2 == 0 => Ok(Awkward::Good(n)),
            n => Err(serde::de::Error::custom(format!("{n} is odd"))),
        }
    }
}

#[test]
fn a_bad_item_stops_nothing_and_does_not_count() {
    let queue = Queue::bounded(2).unwrap();
    for _ in 0..5 {
        let (item, reason) = failure(queue.put(Awkward::Bad));
        assert_eq!(item, Awkward::Bad);
        assert!(matches!(&reason, PutFailure::Codec(error) if error.to_string().contains("not today")), "{reason}");
        assert!(reason.source().is_some());
    }
    assert!(queue.is_empty());
    queue.put(Awkward::Good(1)).unwrap();
    queue.put(Awkward::Good(2)).unwrap();
    assert!(queue.is_full());
    // That one is gone, and it's the error of its getter alone.
    assert!(matches!(queue.get(), Err(GetError::Codec(error)) if error.to_string().contains("1 is odd")));
    assert_eq!(queue.get().unwrap(), Awkward::Good(2));

    // Of several: those before it are in.
    let error = queue.put_many(vec![Awkward::Good(4), Awkward::Bad, Awkward::Good(6)]).unwrap_err();
    assert_eq!(error.item, [Awkward::Bad, Awkward::Good(6)]);
    assert!(matches!(error.reason, PutFailure::Codec(_)));
    queue.put(Awkward::Good(3)).unwrap();
    let both = queue.get_many(10).unwrap();
    assert_eq!(both[0], Ok(Awkward::Good(4)));
    assert!(both[1].is_err());
}

#[test]
fn a_handle_in_an_item_is_an_error_that_says_so() {
    let queue = Queue::unbounded().unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    let (_, reason) = failure(queue.put(Fd::new(reader.into())));
    assert!(reason.to_string().contains("can't be written into bytes"), "{reason}");
    let inner = Queue::<u8>::bounded(1).unwrap();
    let outer = Queue::unbounded().unwrap();
    let (_, reason) = failure(outer.put(inner));
    assert!(reason.to_string().contains("shared between processes"), "{reason}");
    assert!(outer.is_empty());
}

mod here {
    #[derive(serde::Serialize, serde::Deserialize)]
    pub(super) struct Job(pub(super) u64);
    #[derive(serde::Serialize, serde::Deserialize)]
    pub(super) struct Task(pub(super) u64);
}

mod there {
    /// As another program would have it.
    #[derive(serde::Serialize, serde::Deserialize)]
    pub(super) struct Job(pub(super) u64);
}

#[test]
fn a_handle_is_opened_as_a_queue_of_its_type_only() {
    fn opens<S: serde::Serialize, T>(queue: &Queue<S>) -> bool {
        let (bytes, luggage) = pack(|| serde_json::to_vec(queue).unwrap());
        let opened = unpack(&luggage, || serde_json::from_slice::<Queue<T>>(&bytes));
        let joinable = unpack(&luggage, || serde_json::from_slice::<JoinableQueue<T>>(&bytes));
        assert!(joinable.is_err(), "it can't be joined");
        opened.is_ok_and(|opened| {
            // Same address, same queue, whatever the items are called.
            opened.len() == queue.len()
        })
    }
    let queue = Queue::<String>::unbounded().unwrap();
    assert!(opens::<_, String>(&queue));
    // Of the same size and alignment, all of them.
    assert!(!opens::<_, Vec<u8>>(&queue) && !opens::<_, [u64; 3]>(&queue) && !opens::<_, (String,)>(&queue));
    let queue = Queue::<u64>::unbounded().unwrap();
    assert!(opens::<_, u64>(&queue) && !opens::<_, i64>(&queue) && !opens::<_, here::Job>(&queue));
    let queue = Queue::<Vec<here::Job>>::unbounded().unwrap();
    queue.put(vec![here::Job(7)]).unwrap();
    assert!(opens::<_, Vec<here::Job>>(&queue) && opens::<_, Vec<there::Job>>(&queue));
    assert!(!opens::<_, Vec<here::Task>>(&queue) && !opens::<_, Option<here::Job>>(&queue));
    assert!(!opens::<_, here::Job>(&queue) && !opens::<_, Vec<Vec<here::Job>>>(&queue));
    let (bytes, luggage) = pack(|| serde_json::to_vec(&queue).unwrap());
    let theirs: Queue<Vec<there::Job>> = unpack(&luggage, || serde_json::from_slice(&bytes)).unwrap();
    assert_eq!(theirs.get().unwrap()[0].0, 7);
    let _ = here::Task(7).0;
}

/// The memory of a queue as a file, for a peer that lies.
fn memory_of(handle: &impl serde::Serialize) -> std::fs::File {
    let (_, luggage) = pack(|| serde_json::to_vec(handle).unwrap());
    std::fs::File::from(luggage.fds().next().unwrap().try_clone_to_owned().unwrap())
}

#[test]
fn iterators_and_streams_end_with_a_queue_that_has_been_spoiled() {
    use std::os::unix::fs::FileExt;

    let queue = Queue::<u64>::bounded(5).unwrap();
    // Where the position of the last record stands.
    memory_of(&queue).write_all_at(&[0x77; 8], 64 + 64 + 2 * 128).unwrap();
    let mut items = queue.iter();
    assert!(matches!(items.next(), Some(Err(GetError::Corrupt(_)))));
    assert!(items.next().is_none() && items.next().is_none());
    let stream = queue.stream();
    let seen: Vec<_> = block_on(futures_util::StreamExt::collect(futures_util::StreamExt::take(stream, 3)));
    assert!(matches!(&seen[..], [Err(GetError::Corrupt(_))]), "{seen:?}");
}

#[test]
fn a_queue_that_claims_to_be_joinable_has_room_for_it() {
    use std::os::unix::fs::FileExt;

    let queue = QueueOptions::new().memory(4096).queue::<u64>().unwrap();
    memory_of(&queue).write_all_at(&1_u32.to_le_bytes(), 64 + 64 + 8).unwrap();
    let (bytes, luggage) = pack(|| serde_json::to_vec(&queue).unwrap());
    let opened = unpack(&luggage, || serde_json::from_slice::<Queue<u64>>(&bytes));
    assert!(opened.unwrap_err().to_string().contains("too small"));
    let opened = unpack(&luggage, || serde_json::from_slice::<JoinableQueue<u64>>(&bytes));
    assert!(opened.unwrap_err().to_string().contains("too small"));
}

#[test]
fn a_closed_queue_refuses_puts_and_is_drained_by_gets() {
    let queue = Queue::unbounded().unwrap();
    queue.put(1).unwrap();
    queue.put(2).unwrap();
    assert!(!queue.is_closed());
    queue.close();
    queue.close();
    assert!(queue.is_closed());
    assert!(matches!(failure(queue.put(3)), (3, PutFailure::Closed)));
    assert!(matches!(failure(queue.try_put(3)), (3, PutFailure::Closed)));
    assert!(matches!(failure(queue.put_timeout(3, SHORT)), (3, PutFailure::Closed)));
    assert!(matches!(failure(block_on(queue.put_async(3))), (3, PutFailure::Closed)));
    assert!(matches!(failure(queue.put_many(vec![3, 4])), (items, PutFailure::Closed) if items == [3, 4]));
    assert_eq!(queue.get().unwrap(), 1);
    assert_eq!(queue.try_get().unwrap(), 2);
    assert!(matches!(queue.get(), Err(GetError::Closed)));
    assert!(matches!(queue.try_get(), Err(GetError::Closed)));
    assert!(matches!(queue.get_timeout(LONG), Err(GetError::Closed)));
    assert!(matches!(block_on(queue.get_async()), Err(GetError::Closed)));
    assert_eq!(queue.iter().count(), 0);
}

#[test]
fn close_wakes_all_who_sleep() {
    let (empty, full) = (Queue::<u8>::unbounded().unwrap(), Queue::bounded(1).unwrap());
    full.put(0).unwrap();
    let sleepers: Vec<_> = (0..8)
        .map(|n| {
            let (empty, full) = (empty.clone(), full.clone());
            thread::spawn(move || match n % 4 {
                0 => matches!(empty.get(), Err(GetError::Closed)),
                1 => matches!(block_on(empty.get_async()), Err(GetError::Closed)),
                2 => matches!(failure(full.put(n)), (_, PutFailure::Closed)),
                _ => matches!(failure(block_on(full.put_async(n))), (_, PutFailure::Closed)),
            })
        })
        .collect();
    let process = child("blocked", &empty);
    process.expect("about to get");
    empty.close();
    full.close();
    assert!(sleepers.into_iter().all(|sleeper| sleeper.join().unwrap()));
    process.expect("closed");
    process.join();
    assert_eq!(full.len(), 1);
}

fn blocked(parent: &Peer) {
    let queue: Queue<u8> = parent.recv();
    parent.send("about to get");
    assert!(matches!(queue.get(), Err(GetError::Closed)));
    parent.send("closed");
}

// ---- sizes ----

#[test]
fn an_item_larger_than_the_limit_is_an_error_with_both_sizes() {
    let queue = QueueOptions::new().memory(64 << 10).bytes().unwrap();
    let limit = (64 << 10) - 8;
    let error = queue.put(&vec![0; limit + 1]).unwrap_err();
    assert!(
        matches!(error, PutFailure::TooLarge { size, limit: most } if (size, most) == (limit as u64 + 1, limit as u64))
    );
    queue.put(&vec![1; limit]).unwrap();
    assert!(queue.is_full());
    assert!(matches!(queue.try_put(b""), Err(PutFailure::Full)));
    assert_eq!(queue.get().unwrap(), vec![1; limit]);
    // In the middle of several: those before it are in, and the rest comes back.
    let queue = QueueOptions::new().memory(4 << 10).queue().unwrap();
    let error = queue.put_many(vec!["a".to_owned(), "b".repeat(5_000), "c".to_owned()]).unwrap_err();
    assert!(matches!(error.reason, PutFailure::TooLarge { .. }), "{error}");
    assert_eq!(error.item.len(), 2);
    assert_eq!(queue.len(), 1);
    assert_eq!(queue.get().unwrap(), "a");
}

#[test]
fn options_out_of_range_are_refused() {
    for options in
        [QueueOptions::new().items(0), QueueOptions::new().items(1 << 31), QueueOptions::new().memory(1 << 40)]
    {
        let error = options.queue::<u8>().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
    }
}

#[test]
fn batches_larger_than_the_queue_pass_through_it() {
    let queue = QueueOptions::new().items(7).queue().unwrap();
    let putter = thread::spawn({
        let queue = queue.clone();
        move || queue.put_many((0..50_000_u32).collect())
    });
    let mut next = 0;
    while next < 50_000 {
        for item in queue.get_many(100).unwrap() {
            assert_eq!(item, Ok(next));
            next += 1;
        }
    }
    putter.join().unwrap().unwrap();
    let (rest, reason) = failure(queue.try_put_many((0..10).collect()));
    assert!(matches!(reason, PutFailure::Full));
    assert_eq!(rest, [7, 8, 9]);
    let (rest, reason) = failure(queue.put_many_timeout(rest, SHORT));
    assert!(matches!(reason, PutFailure::TimedOut));
    assert_eq!(rest, [7, 8, 9]);
    let items: Result<Vec<u32>, CodecError> = queue.get_many(9).unwrap().into_iter().collect();
    assert_eq!(items.unwrap(), [0, 1, 2, 3, 4, 5, 6]);
}

// ---- async ----

/// Polls once.
fn poll<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

#[test]
fn many_futures_wait_and_each_gets_one() {
    const WAITERS: usize = 300;
    let queue = Queue::<usize>::unbounded().unwrap();
    let got = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (queue, got) = (queue.clone(), got.clone());
            thread::spawn(move || {
                // All of a thread's futures on one waker: whoever is woken, all are polled.
                let mut futures: Vec<_> = (0..WAITERS / 3).map(|_| Box::pin(queue.get_async())).collect();
                block_on(std::future::poll_fn(|cx| {
                    futures.retain_mut(|future| match future.as_mut().poll(cx) {
                        Poll::Ready(item) => {
                            got.fetch_add(item.unwrap(), Ordering::Relaxed);
                            false
                        }
                        Poll::Pending => true,
                    });
                    if futures.is_empty() { Poll::Ready(()) } else { Poll::Pending }
                }));
            })
        })
        .collect();
    for n in 0..WAITERS {
        queue.put(n).unwrap();
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(got.load(Ordering::Relaxed), WAITERS * (WAITERS - 1) / 2);
    assert!(queue.is_empty());
}

#[test]
fn a_future_that_is_dropped_has_put_or_got_nothing() {
    let queue = Queue::bounded(1).unwrap();
    {
        let mut get = Box::pin(queue.get_async());
        assert!(poll(&mut get, Waker::noop()).is_pending());
    }
    queue.put(1).unwrap();
    {
        let mut put = Box::pin(queue.put_async(2));
        assert!(poll(&mut put, Waker::noop()).is_pending());
    }
    assert_eq!(queue.len(), 1);
    assert_eq!(queue.get().unwrap(), 1);
    assert!(queue.is_empty());
    // Of two who wait, the one that is left gets the item.
    let mut dropped = Box::pin(queue.get_async());
    assert!(poll(&mut dropped, Waker::noop()).is_pending());
    let waiting = thread::spawn({
        let queue = queue.clone();
        move || block_on(queue.get_async())
    });
    queue.put(3).unwrap();
    drop(dropped);
    assert_eq!(waiting.join().unwrap().unwrap(), 3);
}

#[test]
fn a_stream_ends_when_the_queue_is_closed() {
    let queue = Queue::unbounded().unwrap();
    let mut stream = queue.stream();
    let putter = thread::spawn({
        let queue = queue.clone();
        move || {
            block_on(async {
                for n in 0..500_u32 {
                    queue.put_async(n).await.unwrap();
                }
                queue.put_many_async((500..1_000).collect()).await.unwrap();
            });
            queue.close();
        }
    });
    let mut next = || block_on(std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)));
    for n in 0..1_000 {
        assert_eq!(next().unwrap().unwrap(), n);
    }
    assert!(next().is_none());
    assert!(next().is_none());
    putter.join().unwrap();
}

// ---- joining ----

#[test]
fn join_waits_until_all_is_done_and_too_many_is_an_error() {
    let queue = JoinableQueue::unbounded().unwrap();
    queue.join();
    assert_eq!(queue.task_done(), Err(TooManyDone));
    for n in 0..10 {
        queue.put(n).unwrap();
    }
    assert_eq!(queue.unfinished(), 10);
    assert!(!queue.try_join() && !queue.join_timeout(SHORT));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let queue = queue.clone();
            thread::spawn(move || {
                while queue.get().is_ok() {
                    queue.task_done().unwrap();
                }
            })
        })
        .collect();
    queue.join();
    block_on(queue.join_async());
    assert!(queue.try_join() && queue.is_empty());
    queue.close();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    assert_eq!(queue.task_done(), Err(TooManyDone));
}

#[test]
fn a_task_is_done_when_dropped_and_not_when_put_back() {
    let queue = JoinableQueue::unbounded().unwrap();
    queue.put(Awkward::Good(2)).unwrap();
    queue.put(Awkward::Good(3)).unwrap();
    let task = queue.get_task().unwrap();
    assert_eq!((&*task, queue.unfinished(), queue.len()), (&Awkward::Good(2), 2, 1));
    task.put_back().unwrap();
    assert_eq!((queue.unfinished(), queue.len()), (2, 2));
    // Taken, but never seen by anybody: finished.
    assert!(matches!(queue.try_get_task(), Err(GetError::Codec(_))));
    assert_eq!(queue.unfinished(), 1);
    let task = queue.get_task_timeout(LONG).unwrap();
    let join = thread::spawn({
        let queue = queue.clone();
        move || queue.join_timeout(LONG)
    });
    assert_eq!(task.finish(), Awkward::Good(2));
    assert!(join.join().unwrap());
    // After closing, it can't be put back, and stays unfinished.
    queue.put(Awkward::Good(4)).unwrap();
    queue.close();
    let error = queue.get_task().unwrap().put_back().unwrap_err();
    assert!(matches!(error.reason, PutFailure::Closed));
    assert_eq!(queue.unfinished(), 1);
    drop(error);
    assert_eq!(queue.unfinished(), 0);
}

/// Takes two items, finishes one of them, and never the other.
fn idle_worker(parent: &Peer) {
    let queue: JoinableQueue<u32> = parent.recv();
    queue.get().unwrap();
    queue.get().unwrap();
    queue.task_done().unwrap();
    parent.send("took two");
    parent.expect("never");
}

#[test]
fn a_worker_that_dies_with_a_task_keeps_no_join_waiting() {
    for form in ["blocking", "future", "before"] {
        let queue = JoinableQueue::bounded(10).unwrap();
        queue.put(1).unwrap();
        queue.put(2).unwrap();
        // In the third form, the join begins before there is a worker at all.
        let join = |queue: JoinableQueue<u32>| {
            thread::spawn(move || if form == "blocking" { queue.join() } else { block_on(queue.join_async()) })
        };
        let early = (form == "before").then(|| join(queue.clone()));
        let mut worker = child("idle worker", &queue);
        worker.expect("took two");
        assert_eq!((queue.unfinished(), queue.len()), (1, 0));
        assert!(!queue.join_timeout(SHORT));
        let joined = early.unwrap_or_else(|| join(queue.clone()));
        worker.kill();
        joined.join().unwrap();
        assert_eq!((queue.unfinished(), queue.abandoned()), (0, 1));
        // The next worker's count begins at zero.
        let next = child("worker", &queue);
        queue.put(5).unwrap();
        queue.join();
        queue.close();
        next.expect("5");
        assert_eq!(queue.abandoned(), 1);
    }
}

/// Works until the end, and says the sum of what it got.
fn worker(parent: &Peer) {
    let queue: JoinableQueue<u32> = parent.recv();
    let mut sum = 0;
    while let Ok(task) = queue.get_task() {
        sum += *task;
    }
    parent.send(&sum.to_string());
}

// ---- several processes ----

#[test]
fn travels_to_another_process_and_back() {
    #[derive(Serialize, Deserialize)]
    struct Handles {
        there: Queue<String>,
        back: ByteQueue,
        work: JoinableQueue<u32>,
    }
    let handles = Handles {
        there: Queue::bounded(3).unwrap(),
        back: ByteQueue::unbounded().unwrap(),
        work: JoinableQueue::unbounded().unwrap(),
    };
    let echo = child("echo", &handles);
    let words: Vec<String> = (0..100).map(|n| format!("word {n}")).collect();
    for word in &words {
        handles.there.put(word.clone()).unwrap();
        assert_eq!(handles.back.get().unwrap(), word.as_bytes());
    }
    // The same memory, under the same address.
    assert!(echo.recv::<Queue<String>>().is_same(&handles.there));
    handles.there.close();
    echo.join();
    assert_eq!(handles.back.len(), 1);
    let mut bytes = vec![9; 9];
    handles.back.get_into(&mut bytes).unwrap();
    assert_eq!(bytes, b"bye");
    // Another kind of handle is an error, not a misunderstanding.
    let (bytes, luggage) = polypool_ipc::pack(|| serde_json::to_vec(&handles.back).unwrap());
    let wrong: Result<Queue<String>, _> = polypool_ipc::unpack(&luggage, || serde_json::from_slice(&bytes));
    assert!(wrong.unwrap_err().to_string().contains("kind"));
    let (bytes, luggage) = polypool_ipc::pack(|| serde_json::to_vec(&handles.there).unwrap());
    let wrong: Result<JoinableQueue<String>, _> = polypool_ipc::unpack(&luggage, || serde_json::from_slice(&bytes));
    assert!(wrong.unwrap_err().to_string().contains("joined"));
}

fn echo(parent: &Peer) {
    let (there, back, _work): (Queue<String>, ByteQueue, JoinableQueue<u32>) = {
        #[derive(Deserialize)]
        struct Handles {
            there: Queue<String>,
            back: ByteQueue,
            work: JoinableQueue<u32>,
        }
        let handles: Handles = parent.recv();
        (handles.there, handles.back, handles.work)
    };
    for (n, word) in there.iter().enumerate() {
        back.put(word.unwrap().as_bytes()).unwrap();
        if n == 99 {
            parent.send(&there);
        }
    }
    back.put(b"bye").unwrap();
}

/// Who put it, its number, and something that shows whether it's whole.
#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct Item {
    putter: u32,
    number: u32,
    filling: Vec<u8>,
}

impl Item {
    fn new(putter: u32, number: u32, longest: u32) -> Self {
        let len = number.wrapping_mul(2_654_435_761).wrapping_add(putter) % longest;
        Item { putter, number, filling: (0..len).map(|at| (at + number + putter) as u8).collect() }
    }

    #[track_caller]
    fn check(&self, longest: u32) {
        assert!(*self == Item::new(self.putter, self.number, longest), "a torn item: {self:?}");
    }
}

type Order = (Queue<Item>, u32, u32, u32);

/// Puts numbered items, in every form, and says how far it has come.
fn putter(parent: &Peer) {
    let (queue, me, count, longest): Order = parent.recv();
    for number in 0..count {
        let item = Item::new(me, number, longest);
        match number % 3 {
            0 => queue.put(item).unwrap(),
            1 => block_on(queue.put_async(item)).unwrap(),
            _ => queue.put_many(vec![item]).unwrap(),
        }
        if number % 100 == 99 {
            parent.send(&number);
        }
    }
    parent.send(&u32::MAX);
}

/// Gets until the queue is closed, and says what it has got, at the end or, if `count` is set, at once and one by one.
fn getter(parent: &Peer) {
    let (queue, _, count, longest): Order = parent.recv();
    let mut got = Vec::new();
    loop {
        let items = match got.len() % 3 {
            0 => queue.get().map(|item| vec![item]),
            1 => block_on(queue.get_async()).map(|item| vec![item]),
            _ => queue.get_many(4).map(|items| items.into_iter().map(Result::unwrap).collect()),
        };
        match items {
            Ok(items) => {
                for item in items {
                    item.check(longest);
                    got.push((item.putter, item.number));
                    if count > 0 {
                        parent.send(&vec![(item.putter, item.number)]);
                    }
                }
            }
            Err(GetError::Closed) => break,
            Err(other) => panic!("{other}"),
        }
    }
    if count == 0 {
        parent.send(&got);
    }
}

#[test]
fn four_putters_and_four_getters_lose_and_double_nothing() {
    // Bounded by items; by memory, growing from the first size on; and so that it is full of bytes.
    let queues = [
        (Queue::<Item>::bounded(5), 100),
        (Queue::<Item>::unbounded(), 3_000),
        (QueueOptions::new().memory(8 << 10).queue(), 3_000),
    ];
    for (queue, longest) in queues {
        let queue = queue.unwrap();
        const EACH: u32 = 1_500;
        let putters: Vec<Child> = (0..4).map(|me| child("putter", &(&queue, me, EACH, longest))).collect();
        let getters: Vec<Child> = (0..4).map(|me| child("getter", &(&queue, me, 0, longest))).collect();
        for putter in putters {
            while putter.recv::<u32>() != u32::MAX {}
            putter.join();
        }
        queue.close();
        let mut seen = HashMap::new();
        for getter in getters {
            let got: Vec<(u32, u32)> = getter.recv();
            // First in, first out: what one getter has of one putter is in order.
            let mut last = BTreeMap::new();
            for (putter, number) in got {
                assert!(last.insert(putter, number).is_none_or(|before| before < number));
                *seen.entry((putter, number)).or_insert(0) += 1;
            }
            getter.join();
        }
        assert_eq!(seen.len() as u32, 4 * EACH);
        assert!(seen.values().all(|times| *times == 1));
        assert!(queue.is_empty());
    }
}

/// Putters and getters are killed at arbitrary moments. All the others go on; of what was put, a killed getter takes at
/// most what it was just getting (here up to four) and had not yet told; nothing comes twice.
#[test]
fn killed_putters_and_getters_take_at_most_their_own_item_along() {
    const EACH: u32 = 2_000;
    let longest = 600;
    for round in 0..6_u32 {
        let queue =
            if round % 2 == 0 { Queue::<Item>::bounded(8) } else { QueueOptions::new().memory(128 << 10).queue() }
                .unwrap();
        let mut putters: Vec<Child> = (0..4).map(|me| child("putter", &(&queue, me, EACH, longest))).collect();
        let mut getters: Vec<Child> = (0..4).map(|me| child("getter", &(&queue, me, 1, longest))).collect();
        // Two of each die after some progress, which is what makes the moment arbitrary.
        let listeners: Vec<_> = getters
            .drain(..)
            .enumerate()
            .map(|(index, mut getter)| {
                thread::spawn(move || {
                    let mut got: Vec<(u32, u32)> = Vec::new();
                    let dies = (index < 2).then_some(100 + 150 * index as u32 + 37 * round);
                    while let Ok(more) = getter.try_recv::<Vec<(u32, u32)>>() {
                        got.extend(more);
                        if dies == Some(got.len() as u32) {
                            let _ = getter.process.kill();
                        }
                    }
                    (got, getter.wait().success())
                })
            })
            .collect();
        let mut told = Vec::new();
        for (index, putter) in putters.iter_mut().enumerate() {
            let mut last = 0;
            loop {
                match putter.try_recv::<u32>() {
                    Ok(u32::MAX) => {
                        last = EACH;
                        break;
                    }
                    Ok(number) => {
                        last = number + 1;
                        if index < 2 && last >= 300 + 100 * round {
                            putter.kill();
                            break;
                        }
                    }
                    Err(_) => break,
                }
            }
            told.push(last);
        }
        queue.close();
        let mut seen = HashMap::new();
        let mut killed = 0;
        for listener in listeners {
            let (got, ended) = listener.join().unwrap();
            killed += usize::from(!ended);
            for (putter, number) in got {
                assert!(seen.insert((putter, number), ()).is_none(), "item {number} of putter {putter} came twice");
            }
        }
        assert!(queue.is_empty());
        // Batches of up to four, and one more that was being told.
        let missing: usize = told
            .iter()
            .enumerate()
            .map(|(me, last)| (0..*last).filter(|n| !seen.contains_key(&(me as u32, *n))).count())
            .sum();
        assert!(missing <= killed * 4, "{missing} items are missing, and {killed} getters were killed");
    }
}

#[test]
fn nothing_is_left_open_when_the_handles_are_gone() {
    let count = || {
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter(|fd| {
                std::fs::read_link(fd.as_ref().unwrap().path())
                    .is_ok_and(|to| to.to_string_lossy().contains("memfd:polypool"))
            })
            .count()
    };
    // In a process of its own, as other tests of this one open queues at the same time.
    if std::env::var_os("POLYPOOL_IPC_TEST_LEAK").is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["nothing_is_left_open_when_the_handles_are_gone", "--exact"])
            .env("POLYPOOL_IPC_TEST_LEAK", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let first = Queue::<u8>::unbounded().unwrap();
    drop(first);
    let before = count(); // the board, which stays
    for _ in 0..50 {
        let queue = JoinableQueue::bounded(5).unwrap();
        queue.put(1).unwrap();
        let stream = queue.stream();
        let task = queue.get_task().unwrap();
        assert!(poll(&mut Box::pin(queue.get_async()), Waker::noop()).is_pending());
        assert!(count() > before);
        drop((queue, stream, task));
    }
    let until = Instant::now() + LONG;
    // The thread that sleeps for futures holds the memory until it has looked.
    while count() > before {
        assert!(Instant::now() < until, "{} are left", count() - before);
        thread::yield_now();
    }
}
