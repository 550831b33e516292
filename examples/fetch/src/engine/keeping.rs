//! Whole bodies on their way to their places. Not on the thread of the requests: hashes, files and a compressed archive
//! would hold up all the others.
//!
//! They go many at a time, as a task for each would cost more than the keeping: a batch waits a moment for more, and
//! for the one before it. What is heavy waits for neither, and nothing waits for it; other workers of the pool take it.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_ext::Tagged;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use polypool::{TaskFuture, ThreadPool};

/// From so many bytes on, a batch goes to a worker though another one is under way.
const HEAVY: u64 = 512 * 1024;

/// A batch of so many, or one that has waited for so long, waits for no more.
const ENOUGH: usize = 64;
const MOMENT: Duration = Duration::from_millis(2);

/// So many bodies, or bytes of them in memory, are enough to wait.
const MANY: usize = 192;
const MUCH: u64 = 4 * 1024 * 1024;

/// Keeps things of type `T`, each of which is known by a `K`, as what `work` makes of it.
#[derive(Debug)]
pub(super) struct Keeping<K, T, R> {
    pool: ThreadPool,
    work: fn(&mut K, T) -> R,
    /// The next batch.
    gathered: Vec<(K, T)>,
    weight: Weight,
    /// When it may wait for no more.
    due: Option<Instant>,
    under_way: FuturesUnordered<UnderWay<K, T, R>>,
    /// How many of them are not heavy.
    light: usize,
    /// Of all there is, gathered or under way.
    count: usize,
    in_memory: u64,
}

/// How much there is to keep of something.
#[derive(Clone, Copy, Debug, Default)]
struct Weight {
    /// All bytes: they are the work.
    bytes: u64,
    /// Those that wait in memory. The others wait in a file, and cost nothing meanwhile.
    in_memory: u64,
}

/// What was to be kept, and what came of it, or why it was not.
pub(super) type Kept<K, R> = (K, Result<R, String>);

/// What a worker takes; left behind by one that never came.
type Batch<K, T> = Arc<Mutex<Vec<(K, T)>>>;

/// Tagged with the batch, and its weight.
type UnderWay<K, T, R> = Tagged<TaskFuture<Vec<Kept<K, R>>>, (Batch<K, T>, Weight)>;

impl Weight {
    fn is_heavy(self) -> bool {
        self.bytes >= HEAVY
    }
}

impl<K: Send + 'static, T: Send + 'static, R: Send + 'static> Keeping<K, T, R> {
    pub(super) fn new(pool: ThreadPool, work: fn(&mut K, T) -> R) -> Self {
        Keeping {
            pool,
            work,
            gathered: Vec::new(),
            weight: Weight::default(),
            due: None,
            under_way: FuturesUnordered::new(),
            light: 0,
            count: 0,
            in_memory: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether there is so little that more may come.
    pub(super) fn has_room(&self) -> bool {
        self.count < MANY && self.in_memory < MUCH
    }

    /// Puts something of so many bytes, of which so many are in memory, and which is there since `now`, into the next
    /// batch.
    pub(super) fn add(&mut self, now: Instant, key: K, what: T, bytes: u64, in_memory: u64) {
        if bytes >= HEAVY && !self.gathered.is_empty() {
            self.hand_over(); // In one batch they would wait for it.
        }
        self.due.get_or_insert(now + MOMENT);
        self.gathered.push((key, what));
        self.weight.bytes += bytes;
        self.weight.in_memory += in_memory;
        (self.count, self.in_memory) = (self.count + 1, self.in_memory + in_memory);
        if self.weight.is_heavy() {
            self.hand_over();
        }
    }

    /// Lets the next batch go, unless there is a light one under way, or it may wait for more and there is `more` to
    /// come. Says when it goes at the latest, unless that is up to the one under way.
    pub(super) fn start(&mut self, now: Instant, more: bool) -> Option<Instant> {
        let due = self.due.filter(|_| self.light == 0)?;
        if more && due > now && self.gathered.len() < ENOUGH {
            return Some(due);
        }
        self.hand_over();
        None
    }

    /// What a batch came to; `None` if there is none under way. Dropped before it is ready, it loses nothing.
    pub(super) async fn next(&mut self) -> Option<Vec<Kept<K, R>>> {
        let ((batch, weight), outcome) = self.under_way.next().await?;
        let kept = outcome.unwrap_or_else(|error| {
            let left = mem::take(&mut *batch.lock());
            left.into_iter().map(|(key, _)| (key, Err(error.to_string()))).collect()
        });
        self.light -= usize::from(!weight.is_heavy());
        (self.count, self.in_memory) = (self.count - kept.len(), self.in_memory - weight.in_memory);
        Some(kept)
    }

    fn hand_over(&mut self) {
        let (work, weight) = (self.work, mem::take(&mut self.weight));
        self.light += usize::from(!weight.is_heavy());
        self.due = None;
        let batch = Arc::new(Mutex::new(mem::take(&mut self.gathered)));
        let each = move |(mut key, thing): (K, T)| {
            // Each on its own: what is wrong with one is no reason to lose the others.
            let kept = catch_unwind(AssertUnwindSafe(|| work(&mut key, thing)));
            (key, kept.map_err(|panic| message(&*panic)))
        };
        let taken = Arc::clone(&batch);
        let task = self.pool.spawn(move || {
            let batch = mem::take(&mut *taken.lock());
            batch.into_iter().map(each).collect()
        });
        self.under_way.push(task.tagged((batch, weight)));
    }
}

/// What a panic said.
pub(super) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("it didn't say why"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    type Work = Box<dyn FnOnce() -> usize + Send>;

    fn keeping(workers: usize) -> Keeping<usize, Work, usize> {
        let pool = ThreadPool::builder().workers(workers).build().expect("a pool");
        Keeping::new(pool, |_, work| work())
    }

    /// What is there now, and in memory.
    fn add(keeping: &mut Keeping<usize, Work, usize>, key: usize, work: Work, bytes: u64) {
        keeping.add(Instant::now(), key, work, bytes, bytes);
    }

    fn next(keeping: &mut Keeping<usize, Work, usize>) -> Option<Vec<Kept<usize, usize>>> {
        futures_ext::block_on(keeping.next())
    }

    #[test]
    fn a_panic_costs_one_and_not_its_batch() {
        let mut keeping = keeping(1);
        for number in 0..4 {
            let work: Work = Box::new(move || if number == 1 { panic!("number {number}") } else { number * 2 });
            add(&mut keeping, number, work, 1);
        }
        keeping.start(Instant::now(), false);
        let kept = next(&mut keeping).expect("a batch");
        assert_eq!(kept, [(0, Ok(0)), (1, Err("it panicked: number 1".into())), (2, Ok(4)), (3, Ok(6))]);
        assert!(keeping.is_empty() && next(&mut keeping).is_none());
    }

    #[test]
    fn what_comes_while_a_batch_is_under_way_is_the_next_one() {
        let mut keeping = keeping(1);
        let (open, gate) = mpsc::channel();
        let now = Instant::now();
        keeping.add(now, 0, Box::new(move || gate.recv().map_or(0, |()| 7)), 1, 1);
        assert_eq!(keeping.start(now, true), Some(now + MOMENT));
        assert_eq!((keeping.start(now + MOMENT, true), keeping.under_way.len()), (None, 1));
        for number in 1..=3 {
            keeping.add(now, number, Box::new(move || number), 1, 1);
            assert_eq!(keeping.start(now, false), None);
        }
        assert_eq!(keeping.under_way.len(), 1);
        open.send(()).expect("it waits");
        assert_eq!(next(&mut keeping), Some(vec![(0, Ok(7))]));
        keeping.start(now, false);
        assert_eq!(next(&mut keeping), Some(vec![(1, Ok(1)), (2, Ok(2)), (3, Ok(3))]));
        assert!(keeping.is_empty());
    }

    #[test]
    fn heavy_ones_are_shared_by_the_workers() {
        let mut keeping = keeping(2);
        let (hello, other) = mpsc::channel();
        let (answer, answered) = mpsc::channel();
        // Each waits for the other, which takes two threads.
        add(
            &mut keeping,
            1,
            Box::new(move || hello.send(()).and(answered.recv().map_err(|_| mpsc::SendError(()))).map_or(0, |()| 1)),
            HEAVY,
        );
        add(&mut keeping, 2, Box::new(move || other.recv().ok().and(answer.send(()).ok()).map_or(0, |()| 2)), HEAVY);
        assert_eq!(keeping.under_way.len(), 2);
        let mut kept = [next(&mut keeping), next(&mut keeping)].map(|batch| batch.expect("a batch").remove(0));
        kept.sort_unstable();
        assert_eq!(kept, [(1, Ok(1)), (2, Ok(2))]);
    }

    #[test]
    fn there_is_no_room_for_much() {
        let mut keeping = keeping(1);
        add(&mut keeping, 0, Box::new(|| 0), MUCH);
        assert!(!keeping.has_room());
        next(&mut keeping);
        assert!(keeping.has_room());
        keeping.add(Instant::now(), 0, Box::new(|| 0), MUCH, 0);
        assert!(keeping.has_room(), "it is in a file");
        (1..MANY).for_each(|number| add(&mut keeping, number, Box::new(|| 0), 1));
        assert!(!keeping.has_room());
    }

    #[test]
    fn light_ones_wait_for_no_heavy_one() {
        let mut keeping = keeping(2);
        let (open, gate) = mpsc::channel();
        add(&mut keeping, 0, Box::new(|| 0), 1);
        add(&mut keeping, 1, Box::new(move || gate.recv().map_or(0, |()| 1)), HEAVY);
        assert_eq!(keeping.under_way.len(), 2, "one for each");
        assert_eq!(next(&mut keeping), Some(vec![(0, Ok(0))]));
        add(&mut keeping, 2, Box::new(|| 2), 1);
        keeping.start(Instant::now(), false);
        assert_eq!(keeping.under_way.len(), 2, "not gathered until the gate opens");
        assert_eq!(next(&mut keeping), Some(vec![(2, Ok(2))]));
        open.send(()).expect("it waits");
        assert_eq!(next(&mut keeping), Some(vec![(1, Ok(1))]));
        assert!(keeping.is_empty());
    }

    #[test]
    fn a_pool_that_is_gone_loses_no_key() {
        let mut keeping = keeping(1);
        futures_ext::block_on(polypool::Executor::shutdown(&keeping.pool, polypool::Shutdown::Now));
        add(&mut keeping, 5, Box::new(|| 0), 1);
        keeping.start(Instant::now(), false);
        let kept = next(&mut keeping).expect("a batch");
        assert!(matches!(&kept[..], [(5, Err(_))]), "{kept:?}");
    }
}
