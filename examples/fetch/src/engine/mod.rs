//! From rows to records: takes rows as there is room, starts attempts when it is their turn (`lanes`), tries again what
//! deserves it (`retry`), has bodies kept (`keeping`), and hands out one record for each row as it is done.
//!
//! All of it is one asynchronous task of the pool, and the attempts are futures in it: a task for each would cost a
//! tenth of what a small request takes. Only bodies cross to another thread, many at a time.

mod adaptive;
mod keeping;
mod lanes;
mod retry;
mod room;

use std::collections::VecDeque;
use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};
use std::{future, mem, thread};

use futures_ext::{CancellationToken, FutureExt as _, Tagged};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, FuturesUnordered, Stream, StreamExt};
use polypool::ThreadPool;
use tokio::sync::mpsc;
use tokio::task::coop::unconstrained;
use tokio_util::sync::ReusableBoxFuture;

use self::adaptive::Limit;
use self::keeping::Keeping;
use self::lanes::{Job, LaneId, Lanes, Turn};
use self::retry::Verdict;
pub(crate) use self::room::{Room, Share};
use crate::extract::Extractor;
use crate::http::{Attempt, Fetcher};
use crate::output::record::{Failure, Kind, Record};
use crate::output::{Bodies, Body, Page, Ticket};
use crate::request::{Row, redacted};
use crate::settings::Settings;

/// How many pages may wait for extraction before nothing new is started.
const PAGES: usize = 64;

/// So many records that wait are handed out before more rows are looked at: some rows need no request, and nothing else
/// may wait for as long as those come.
const AT_ONCE: usize = 64;

/// For how long another row is waited for after the deadline, and in how many pieces: if all threads stand still for a
/// while, that is one piece.
const PATIENCE: Duration = Duration::from_millis(250);
const LOOKS: u32 = 10;

/// How often [`Control`] learns which hosts are the busiest.
const LOOK: Duration = Duration::from_millis(500);

/// How others steer a run, and what they see of it.
#[derive(Debug, Default)]
pub(crate) struct Control {
    /// Nothing more is started once this is cancelled; what runs has `--grace` to end. Rows that have no record by then
    /// get none.
    pub(crate) stop: CancellationToken,
    /// No row beyond this one is started.
    pub(crate) horizon: AtomicU64,
    /// Whether the deadline came before the end of the input.
    pub(crate) gave_up: AtomicBool,
    /// How many attempts were not the first of their row.
    pub(crate) retries: AtomicU64,
    /// The hosts with the most requests at once: name, running, waiting.
    pub(crate) busiest: parking_lot::Mutex<Vec<(String, usize, usize)>>,
}

/// The rows as they are read, each with its share of the memory for what waits.
pub(crate) type Incoming = mpsc::Receiver<Shared>;

type Shared = (Row, Share);

/// What a run works with.
pub(crate) struct Parts {
    pub(crate) pool: ThreadPool,
    pub(crate) fetcher: Fetcher,
    pub(crate) bodies: Bodies,
    pub(crate) extractor: Option<Extractor>,
    pub(crate) rows: Incoming,
    pub(crate) control: Arc<Control>,
    /// When the run started.
    pub(crate) start: Instant,
}

/// One record for each row, in the order in which they are done; in boxes, as each goes through many hands. Dropping
/// the stream cancels what runs.
pub(crate) fn records(settings: Arc<Settings>, parts: Parts) -> impl Stream<Item = Box<Record>> {
    let engine = Box::new(Engine::new(settings, parts));
    stream::unfold(engine, async |mut engine| engine.next().await.map(|record| (record, engine)))
}

struct Engine {
    settings: Arc<Settings>,
    fetcher: Fetcher,
    bodies: Bodies,
    extractor: Option<Arc<Extractor>>,
    control: Arc<Control>,
    looked: Instant,
    rows: Incoming,
    /// Whether `rows` has ended.
    read: bool,
    /// Whether rows are taken in. It stops when there are enough and goes on when half of them are gone, so that the
    /// thread that reads is not woken for every single one.
    filling: bool,
    lanes: Lanes,
    limit: Limit,
    running: FuturesUnordered<Running>,
    /// Of attempts that have ended, for the next ones.
    slots: Vec<Slot>,
    keeping: Keeping<Whole, Body, Option<Page>>,
    extracting: FuturesUnordered<BoxFuture<'static, Box<Record>>>,
    finished: VecDeque<Box<Record>>,
    deadline: Option<Instant>,
    /// Set by an interruption: until when what runs may go on.
    until: Option<Instant>,
    /// The number of the row that came last. They come in order.
    last: u64,
    /// Set when the deadline has passed and no row is there: until when the next one is waited for, and how many such
    /// times that makes.
    patience: Option<Instant>,
    looks: u32,
}

type Running = Tagged<InSlot, Job>;

/// Where an attempt runs: a box, for it is large, and one that the next attempt takes over. A panic costs the row's
/// attempt, and not the run.
type Slot = ReusableBoxFuture<'static, thread::Result<Attempt>>;

/// Gives back the slot with what came of the attempt.
#[derive(Debug)]
struct InSlot(Option<Slot>);

impl Future for InSlot {
    type Output = (Slot, thread::Result<Attempt>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = self.0.take().expect("not polled after its end");
        match slot.poll(cx) {
            Poll::Ready(outcome) => Poll::Ready((slot, outcome)),
            Poll::Pending => {
                self.0 = Some(slot);
                Poll::Pending
            }
        }
    }
}

/// A row that has its body, which is still to be kept.
#[derive(Debug)]
struct Whole {
    job: Job,
    record: Box<Record>,
    ended: Instant,
}

impl Engine {
    fn new(settings: Arc<Settings>, parts: Parts) -> Self {
        let Parts { pool, fetcher, bodies, extractor, rows, control, start } = parts;
        let deadline = settings.limits.deadline.and_then(|deadline| start.checked_add(deadline));
        Engine {
            keeping: Keeping::new(pool, keep),
            fetcher,
            bodies,
            extractor: extractor.map(Arc::new),
            control,
            looked: start,
            rows,
            read: false,
            filling: true,
            lanes: Lanes::new(&settings.limits, settings.http.polite),
            limit: Limit::new(settings.limits.concurrency, start),
            running: FuturesUnordered::new(),
            slots: Vec::new(),
            extracting: FuturesUnordered::new(),
            finished: VecDeque::new(),
            deadline,
            until: None,
            last: 0,
            patience: None,
            looks: 0,
            settings,
        }
    }

    async fn next(&mut self) -> Option<Box<Record>> {
        loop {
            if let Some(record) = self.finished.pop_front() {
                return Some(record);
            }
            // Here, and not only where it is waited for: there may always be something else that has come.
            if self.until.is_none() && self.control.stop.is_cancelled() {
                self.stop();
            }
            let now = Instant::now();
            if self.until.is_some_and(|until| until <= now) {
                self.running.clear(); // Cancels it.
                self.keeping.start(now, false);
                // Whole bodies get their records: keeping them ends by itself, and soon; what is extracted from them
                // has --extract-timeout.
                match self.keeping.next().await {
                    Some(kept) => kept.into_iter().for_each(|(whole, kept)| self.kept(whole, kept)),
                    None => self.finished.push_back(self.extracting.next().await?),
                }
                continue;
            }
            if self.deadline.is_some_and(|deadline| deadline <= now) {
                self.give_up(now);
            }
            if now.duration_since(self.looked) >= LOOK {
                self.looked = now;
                *self.control.busiest.lock() = self.lanes.busiest(3);
            }
            self.fill();
            let wake = self.start(now);
            let wake = self.keeping.start(now, !self.running.is_empty()).into_iter().chain(wake).min();
            let idle = self.running.is_empty() && self.keeping.is_empty() && self.extracting.is_empty();
            if idle && self.finished.is_empty() && (self.until.is_some() || (self.read && self.lanes.waiting() == 0)) {
                return None;
            }
            let (awaits_rows, goes_on) = (self.awaits_rows(), self.until.is_none());
            let has_records = !self.finished.is_empty();
            let control = self.control.clone();
            tokio::select! {
                biased;
                // Outside the budget of this one task: a hundred attempts would use it up, and with none left nothing
                // else that is waited for here or in the session ever seems to have come.
                Some((job, outcome)) = unconstrained(self.running.next()) => {
                    self.ended(job, outcome);
                    while let Some(Some((job, outcome))) = unconstrained(self.running.next()).now_or_never() {
                        self.ended(job, outcome);
                    }
                }
                Some(kept) = self.keeping.next() => kept.into_iter().for_each(|(whole, kept)| self.kept(whole, kept)),
                Some(record) = self.extracting.next() => self.finished.push_back(record),
                row = self.rows.recv(), if awaits_rows => self.take(row),
                () = control.stop.cancelled(), if goes_on => self.stop(),
                () = sleep_until(wake) => {}
                // What runs was looked at; nothing is waited for.
                () = future::ready(()), if has_records => {}
            }
        }
    }

    fn stop(&mut self) {
        self.until = Some(Instant::now() + self.settings.limits.grace);
        self.rows.close();
    }

    fn wants_rows(&mut self) -> bool {
        let enough = self.settings.limits.lookahead;
        self.filling = if self.filling { self.lanes.waiting() < enough } else { self.has_few() };
        // Rows that need no request have their records at once, so that nothing later holds them up.
        let may_come = self.last < self.control.horizon.load(Ordering::Relaxed);
        self.filling && may_come && self.finished.len() < AT_ONCE && !self.read && self.until.is_none()
    }

    fn has_few(&self) -> bool {
        self.lanes.waiting() <= self.settings.limits.lookahead / 2
    }

    /// Whether a row that comes is worth being woken for. If nothing more can run, it is taken in when something ends.
    fn awaits_rows(&mut self) -> bool {
        self.wants_rows() && (self.has_few() || self.running.len() < self.limit.get())
    }

    /// Takes in the rows that are there.
    fn fill(&mut self) {
        while self.wants_rows() {
            match self.rows.try_recv() {
                Ok(row) => self.take(Some(row)),
                Err(mpsc::error::TryRecvError::Disconnected) => self.take(None),
                Err(mpsc::error::TryRecvError::Empty) => {
                    if self.is_over() {
                        self.lose_patience();
                    }
                    break;
                }
            }
        }
    }

    /// The deadline has passed, and no row is there. Those that come get their records, however long that takes; input
    /// that nothing comes from would hold up the end for ever.
    fn lose_patience(&mut self) {
        let now = Instant::now();
        if self.patience.is_some_and(|until| until > now) {
            return;
        }
        if self.looks < LOOKS {
            self.looks += 1;
            self.patience = Some(now + PATIENCE / LOOKS);
        } else {
            self.control.gave_up.store(true, Ordering::Relaxed);
            self.rows.close(); // Those that came meanwhile are still taken.
        }
    }

    fn take(&mut self, row: Option<Shared>) {
        let Some((row, share)) = row else {
            self.read = true;
            return;
        };
        (self.patience, self.looks) = (None, 0);
        self.last = row.number;
        self.sort(row, share);
    }

    fn sort(&mut self, row: Row, share: Share) {
        let Row { number, id, content } = row;
        match content {
            Ok(request) if self.is_over() => {
                let job = Job { row: number, id, request, attempts: 0, started: None, lane: LaneId::default(), share };
                self.finished.push_back(new_record(&job, Instant::now(), too_late()));
            }
            Ok(request) => self.lanes.push(number, id, request, share),
            Err(bad) => self.finished.push_back(Box::new(Record {
                id: id.map_or_else(|| number.to_string(), Into::into),
                row: number,
                url: bad.url,
                error: Some(Failure { kind: Kind::BadInput, message: bad.message }),
                started_at: instant(SystemTime::now()),
                ..Record::default()
            })),
        }
    }

    fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// The deadline has passed: what waits and what runs get their records.
    fn give_up(&mut self, now: Instant) {
        let record = |job: &Job| new_record(job, now, too_late());
        for running in mem::take(&mut self.running) {
            let Some(job) = running.tag() else { continue };
            self.lanes.done(job.lane);
            self.finished.push_back(record(job));
        }
        self.finished.extend(self.lanes.drain().map(|job| record(&job)));
    }

    /// Starts what may start; says when there may be more.
    fn start(&mut self, now: Instant) -> Option<Instant> {
        let deadline = self.deadline.filter(|&deadline| deadline > now);
        // One that has run out is looked after when rows are wanted again.
        let patience = self.patience.filter(|&patience| patience > now);
        let others = [self.until, deadline, patience].into_iter().flatten().min();
        self.lanes.set_horizon(self.control.horizon.load(Ordering::Relaxed));
        while self.until.is_none() && self.running.len() < self.limit.get() && self.has_room() {
            match self.lanes.next(now) {
                Turn::Start(job) => self.attempt(job, now),
                Turn::At(at) => return others.into_iter().chain([at]).min(),
                Turn::Idle => break,
            }
        }
        others
    }

    /// Whether there are few enough bodies in memory.
    fn has_room(&self) -> bool {
        self.keeping.has_room() && self.extracting.len() < PAGES
    }

    fn attempt(&mut self, mut job: Job, now: Instant) {
        job.attempts += 1;
        job.started.get_or_insert_with(|| (now, SystemTime::now()));
        let (fetcher, bodies, request) = (self.fetcher.clone(), self.bodies.clone(), job.request.clone());
        let attempt = async move { fetcher.attempt(&request, &bodies).await };
        let attempt = AssertUnwindSafe(attempt).catch_unwind();
        let slot = match self.slots.pop() {
            Some(mut slot) => {
                slot.set(attempt);
                slot
            }
            None => Slot::new(attempt),
        };
        self.running.push(InSlot(Some(slot)).tagged(job));
    }

    fn ended(&mut self, job: Job, (slot, outcome): <InSlot as Future>::Output) {
        let now = Instant::now();
        self.slots.push(slot);
        let attempt = match outcome {
            Ok(attempt) => attempt,
            Err(panic) => {
                self.lanes.done(job.lane);
                let failure = Failure { kind: Kind::Internal, message: keeping::message(&*panic) };
                self.finished.push_back(new_record(&job, now, failure));
                return;
            }
        };
        self.limit.ended(now, self.running.len() + 1, attempt.overload);
        if let Some(spacing) = self.fetcher.crawl_delay(&job.request) {
            self.lanes.space(job.lane, spacing);
        }
        match retry::judge(&self.settings.retry, &job.request.method, job.attempts, &attempt) {
            // Its row has no record, so that a run that goes on from here fetches it.
            Verdict::Again { .. } if self.until.is_some() => self.lanes.done(job.lane),
            Verdict::Again { delay, host } => {
                self.control.retries.fetch_add(1, Ordering::Relaxed);
                let (lane, at) = (job.lane, now + delay);
                if host {
                    self.lanes.hold(lane, at);
                }
                self.lanes.push_again(job, at);
                self.lanes.done(lane);
            }
            Verdict::Final => {
                self.lanes.done(job.lane);
                self.finish(job, attempt, now);
            }
        }
    }

    fn finish(&mut self, job: Job, attempt: Attempt, ended: Instant) {
        let mut record = attempt.record;
        match attempt.body {
            Some(body) => {
                let (bytes, in_memory) = (body.bytes(), body.in_memory());
                self.keeping.add(ended, Whole { job, record, ended }, body, bytes, in_memory);
            }
            None => {
                complete(&mut record, &job, ended);
                self.finished.push_back(record);
            }
        }
    }

    /// A row whose body has been kept, or could not be.
    fn kept(&mut self, whole: Whole, kept: Result<Option<Page>, String>) {
        let Whole { job, mut record, ended } = whole;
        let page = kept.unwrap_or_else(|why| {
            complete(&mut record, &job, ended);
            not_kept(&mut record, Kind::Internal, &why);
            None
        });
        match (&self.extractor, page) {
            (Some(extractor), Some(page)) => self.extracting.push(extract(extractor.clone(), page, record).boxed()),
            _ => self.finished.push_back(record),
        }
    }
}

/// Keeps a body, on a worker, and completes the record there as well: the thread of the requests has enough to do.
fn keep(whole: &mut Whole, body: Body) -> Option<Page> {
    let Whole { job, record, ended } = whole;
    let kept = body.keep(Ticket { row: job.row, id: job.id.as_deref(), request: &job.request });
    complete(record, job, *ended);
    let page = match kept {
        Ok(kept) => {
            record.bytes = kept.bytes;
            record.sha256 = Some(kept.sha256);
            record.file = kept.file;
            record.body = kept.inline;
            record.warc = kept.warc;
            kept.page.filter(|_| record.error.is_none())
        }
        Err(error) => {
            not_kept(record, Kind::Output, &error);
            None
        }
    };
    if page.is_none() {
        record.encode();
    }
    page
}

/// What is wrong with the body of an error is of no interest.
fn not_kept(record: &mut Record, kind: Kind, why: &dyn Display) {
    record.error.get_or_insert_with(|| Failure { kind, message: format!("the body could not be kept: {why}") });
}

async fn extract(extractor: Arc<Extractor>, page: Page, mut record: Box<Record>) -> Box<Record> {
    match extractor.run(page).await {
        Ok(found) => record.extracted = Some(found),
        Err(failure) => record.error = Some(failure),
    }
    record
}

/// Completes the record of an attempt with what is known of the row.
fn complete(record: &mut Record, job: &Job, ended: Instant) {
    let (seconds, started_at) = match job.started {
        Some((at, time)) => (ended.saturating_duration_since(at).as_secs_f64(), time),
        None => (0.0, SystemTime::now()),
    };
    record.id = job.id.as_deref().map_or_else(|| job.row.to_string(), str::to_owned);
    record.row = job.row;
    record.url = redacted(&job.request.url);
    if record.status.is_some() {
        record.final_url.get_or_insert_with(|| record.url.clone());
    }
    job.request.method.as_str().clone_into(&mut record.method);
    record.attempts = job.attempts;
    record.seconds = (seconds * 1e6).round() / 1e6;
    record.started_at = instant(started_at);
}

/// The record of a row that failed without a response.
fn new_record(job: &Job, ended: Instant, failure: Failure) -> Box<Record> {
    let mut record = Box::new(Record { error: Some(failure), ..Record::default() });
    complete(&mut record, job, ended);
    record
}

fn too_late() -> Failure {
    Failure { kind: Kind::Deadline, message: "the --deadline of the batch passed".to_owned() }
}

fn instant(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        // A little later, so that it has come for sure.
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::pin::pin;
    use std::sync::mpsc::channel;
    use std::task::{Wake, Waker};
    use std::thread;

    use super::*;
    use crate::cli;
    use crate::input::Rows;
    use crate::request::BadRow;

    /// An engine for these arguments, and its rows.
    fn idle_engine(line: &[&str], pool: ThreadPool) -> (Engine, mpsc::Sender<Shared>, Vec<Shared>) {
        let settings = Arc::new(cli::settings(line));
        let (room, (sender, rows)) = (Room::new(usize::MAX), mpsc::channel(100));
        let shared = |row: Row| {
            let share = room.share(row.size());
            (row, share)
        };
        let all = Rows::open(&settings.input).expect("rows").map(|row| shared(row.expect("a row"))).collect();
        let extractor = settings.extract.as_ref().map(|extract| Extractor::new(extract).expect("a pool"));
        let parts = Parts {
            pool,
            fetcher: Fetcher::new(&settings).expect("a client"),
            bodies: Bodies::new(&settings.output, extractor.is_some()).expect("a place for bodies"),
            extractor,
            rows,
            control: Arc::new(Control { horizon: u64::MAX.into(), ..Control::default() }),
            start: Instant::now(),
        };
        (Engine::new(settings, parts), sender, all)
    }

    /// An engine for these arguments, which has its rows.
    fn engine(line: &[&str], pool: ThreadPool) -> Engine {
        let (engine, sender, rows) = idle_engine(line, pool);
        rows.into_iter().for_each(|row| sender.try_send(row).expect("few rows"));
        engine
    }

    /// Runs on a pool what may hang.
    fn watched<T: Send + 'static>(pool: &ThreadPool, run: impl Future<Output = T> + Send + 'static) -> T {
        pool.spawn_async(async move { tokio::time::timeout(Duration::from_secs(60), run).await })
            .wait()
            .expect("no panic")
            .expect("no hang")
    }

    /// The record of a row whose body is whole, but not yet kept, when the grace ends.
    fn record_after_the_grace(arguments: &[&str]) -> Box<Record> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody");
            }
        });
        let pool = ThreadPool::builder().workers(1).build().expect("a pool");
        // Nothing is kept before the gate opens.
        let (open, gate) = channel::<()>();
        drop(pool.spawn(move || gate.recv()));
        let mut engine = engine(&[&["--grace", "0s", "--noproxy", "*", &url], arguments].concat(), pool.clone());
        let run = async move {
            while engine.keeping.is_empty() {
                // It has nothing to hand out before that.
                let _ = tokio::time::timeout(Duration::from_millis(5), engine.next()).await;
            }
            engine.control.stop.cancel();
            let early = tokio::time::timeout(Duration::from_millis(50), engine.next()).await;
            assert!(early.is_err(), "it waits for the body: {early:?}");
            open.send(()).expect("somebody waits at the gate");
            let record = engine.next().await.expect("a record");
            assert_eq!((engine.next().await, engine.slots.len()), (None, 1));
            record
        };
        watched(&pool, run)
    }

    #[test]
    fn a_slot_takes_another_attempt_after_one_that_panicked() {
        async fn run(fails: bool) -> Attempt {
            tokio::task::yield_now().await;
            assert!(!fails, "it fails");
            Attempt { record: Box::default(), transient: true, retry_after: None, overload: false, body: None }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut slot = Slot::new(AssertUnwindSafe(run(false)).catch_unwind());
            for fails in [true, false, true, false] {
                slot.set(AssertUnwindSafe(run(fails)).catch_unwind());
                let outcome;
                (slot, outcome) = InSlot(Some(slot)).await;
                assert_eq!(
                    outcome.map(|attempt| attempt.transient).map_err(|why| keeping::message(&*why)).ok(),
                    (!fails).then_some(true)
                );
            }
        });
    }

    #[test]
    fn one_attempt_after_another_takes_the_same_slot() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let url = format!("http://{}/{{1..5}}", listener.local_addr().expect("an address"));
        drop(listener); // Nobody is there: each row has a second attempt as well.
        let line = ["--concurrency", "1", "--retry", "1", "--retry-delay", "1ms", "--noproxy", "*", &url];
        let pool = ThreadPool::builder().workers(1).build().expect("a pool");
        let mut engine = engine(&line, pool.clone());
        let (attempts, slots) = watched(&pool, async move {
            let mut attempts = 0;
            while let Some(record) = engine.next().await {
                attempts += record.attempts;
            }
            (attempts, engine.slots.len())
        });
        assert_eq!((attempts, slots), (10, 1));
    }

    #[test]
    fn a_body_that_is_whole_when_the_grace_ends_has_its_record() {
        let record = record_after_the_grace(&[]);
        assert_eq!((record.status, record.error, record.bytes), (Some(200), None, 4));
    }

    #[test]
    fn what_is_extracted_from_it_is_in_its_record() {
        let record = record_after_the_grace(&["--extract-regex", "o."]);
        assert_eq!((record.status, record.error, record.bytes), (Some(200), None, 4));
        assert_eq!(record.extracted, Some(vec!["od".to_owned()]));
    }

    /// A row that needs no request: its record is there at once.
    fn bad(number: u64) -> Shared {
        let bad = BadRow { url: String::new(), message: "no URL".to_owned() };
        (Row { number, id: None, content: Err(bad) }, Share::default())
    }

    /// Lets rows in as there is room for them.
    fn feed(sender: &mpsc::Sender<Shared>, rows: &mut impl Iterator<Item = Shared>) {
        (0..sender.capacity()).zip(rows).for_each(|(_, row)| drop(sender.try_send(row)));
    }

    #[test]
    fn a_stop_is_seen_though_there_is_always_a_row_that_needs_no_request() {
        const BEFORE: usize = 1_000;
        for late in [false, true] {
            let pool = ThreadPool::builder().workers(1).build().expect("a pool");
            let line: &[&str] = if late { &["--deadline", "1ns", "http://h/{1..9999}"] } else { &["http://h/"] };
            let (mut engine, sender, rows) = idle_engine(line, pool.clone());
            let rows = if late { rows } else { (1..=9_999).map(bad).collect() };
            let count = watched(&pool, async move {
                let (mut rows, mut count) = (rows.into_iter(), 0);
                loop {
                    feed(&sender, &mut rows);
                    if count == BEFORE {
                        engine.control.stop.cancel();
                    }
                    match engine.next().await {
                        Some(_) => count += 1,
                        None => return count,
                    }
                }
            });
            assert!((BEFORE..BEFORE + 2 * AT_ONCE).contains(&count), "{count}");
        }
    }

    #[test]
    fn requests_go_on_and_time_out_though_there_is_always_a_row_that_needs_none() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let url = format!("http://{}/{{answered,silent}}", listener.local_addr().expect("an address"));
        thread::spawn(move || {
            let mut silent = Vec::new();
            for mut stream in listener.incoming().flatten() {
                let mut request = [0; 1024];
                let count = stream.read(&mut request).unwrap_or(0);
                if request[..count].starts_with(b"GET /answered ") {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                } else {
                    silent.push(stream);
                }
            }
        });
        let pool = ThreadPool::builder().workers(1).build().expect("a pool");
        let line = ["--first-byte-timeout", "300ms", "--retry", "0", "--noproxy", "*", &url];
        let (mut engine, sender, rows) = idle_engine(&line, pool.clone());
        let mut records = watched(&pool, async move {
            let (mut rows, mut records) = (rows.into_iter().chain((3..).map(bad)), Vec::new());
            while records.len() < 2 {
                feed(&sender, &mut rows);
                records.extend(engine.next().await.filter(|record| record.row <= 2));
                tokio::task::yield_now().await; // as the session does
            }
            records
        });
        records.sort_by_key(|record| record.row);
        assert_eq!((records[0].status, &records[0].error), (Some(200), &None));
        assert_eq!(records[1].error.as_ref().map(|error| error.kind), Some(Kind::FirstByteTimeout));
    }

    #[test]
    fn no_row_is_taken_beyond_the_horizon() {
        let pool = ThreadPool::builder().workers(1).build().expect("a pool");
        let (mut engine, sender, _) = idle_engine(&["http://h/"], pool.clone());
        let counts = watched(&pool, async move {
            feed(&sender, &mut (1..=90).map(bad));
            drop(sender);
            [1, 10, 75, u64::MAX].map(|horizon| {
                engine.control.horizon.store(horizon, Ordering::Relaxed);
                std::iter::from_fn(|| engine.next().now_or_never().flatten()).count()
            })
        });
        assert_eq!(counts, [1, 9, 65, 15]);
    }

    #[test]
    fn after_the_deadline_no_row_that_is_there_is_lost_however_slowly_records_are_taken() {
        let pool = ThreadPool::builder().workers(1).build().expect("a pool");
        let (mut engine, sender, rows) = idle_engine(&["--deadline", "1ns", "http://h/{1..95}"], pool.clone());
        let (count, gave_up) = watched(&pool, async move {
            let mut rows = rows.into_iter();
            feed(&sender, &mut rows.by_ref().take(90));
            let mut count = usize::from(engine.next().await.is_some());
            thread::sleep(2 * PATIENCE); // Standard output is slow.
            while let Some(Some(_)) = engine.next().now_or_never() {
                count += 1;
            }
            thread::sleep(2 * PATIENCE); // All is slow.
            feed(&sender, &mut rows);
            while engine.next().await.is_some() {
                count += 1;
            }
            drop(sender); // Only now: nobody waits for what may never come.
            (count, engine.control.gave_up.load(Ordering::Relaxed))
        });
        assert_eq!((count, gave_up), (95, true));
    }

    #[test]
    fn it_is_woken_for_rows_that_are_of_use_alone() {
        #[derive(Default)]
        struct Woken(AtomicBool);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let url = format!("http://{}/{{1..12}}", listener.local_addr().expect("an address"));
        // One starts. Half a look-ahead is enough if nothing more can run, and a whole one is in any case.
        for (concurrency, expected) in [("1", 1 + 4 + 1), ("64", 1 + 8)] {
            let line = ["--lookahead", "8", "--per-host", "1", "--concurrency", concurrency, "--noproxy", "*", &url];
            let pool = ThreadPool::builder().workers(1).build().expect("a pool");
            let (mut engine, sender, rows) = idle_engine(&line, pool.clone());
            let count = watched(&pool, async move {
                let woken = Arc::new(Woken::default());
                let waker = Waker::from(woken.clone());
                let (mut cx, mut next) = (Context::from_waker(&waker), pin!(engine.next()));
                assert!(next.as_mut().poll(&mut cx).is_pending());
                // The runtime does nothing else meanwhile.
                let is_of_use = |row| {
                    woken.0.store(false, Ordering::Relaxed);
                    sender.try_send(row).expect("there is room");
                    let is_of_use = woken.0.load(Ordering::Relaxed);
                    assert!(!is_of_use || next.as_mut().poll(&mut cx).is_pending());
                    is_of_use
                };
                rows.into_iter().map(is_of_use).filter(|&is_of_use| is_of_use).count()
            });
            assert_eq!(count, expected);
        }
        drop(listener);
    }

    #[test]
    fn rows_that_come_one_by_one_fill_the_look_ahead() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let url = format!("http://{}/{{1..12}}", listener.local_addr().expect("an address"));
        for concurrency in ["1", "64"] {
            let line = ["--lookahead", "8", "--per-host", "1", "--concurrency", concurrency, "--noproxy", "*", &url];
            let pool = ThreadPool::builder().workers(1).build().expect("a pool");
            let (mut engine, sender, rows) = idle_engine(&line, pool.clone());
            let waiting = watched(&pool, async move {
                for row in rows {
                    sender.try_send(row).expect("there is room");
                    // Nobody answers; what happens now and then is a look at the rows.
                    let _ = tokio::time::timeout(Duration::from_millis(1), engine.next()).await;
                }
                (engine.lanes.waiting(), engine.running.len())
            });
            assert_eq!(waiting, (8, 1));
        }
        drop(listener);
    }

    #[test]
    fn after_the_deadline_it_sleeps_while_a_page_is_extracted_from() {
        let pool = ThreadPool::builder().workers(1).build().expect("a pool");
        let (mut engine, sender, _) = idle_engine(&["--deadline", "1ms", "--noproxy", "*", "http://h/"], pool.clone());
        let polls = watched(&pool, async move {
            let (open, gate) = tokio::sync::oneshot::channel();
            engine.extracting.push(gate.map(|_| Box::default()).boxed());
            let (mut polls, mut next) = (0, Box::pin(engine.next()));
            let polled = future::poll_fn(|cx| {
                polls += 1;
                next.as_mut().poll(cx)
            });
            assert!(tokio::time::timeout(PATIENCE * 2, polled).await.is_err(), "a page is awaited");
            open.send(()).expect("it waits");
            assert!(next.await.is_some());
            drop(sender);
            polls
        });
        assert!(polls < 20, "{polls}");
    }
}
