//! Who may start next, and when. Every origin has a lane: a queue, a limit, a rate and a "not before". Hosts take
//! turns, and nothing that waits (for its host, for a rate, for a second attempt) holds a slot that another could use.
//!
//! Time comes from outside, except that the token buckets read the clock themselves.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::room::Share;
use crate::request::{Origin, Request};
use crate::settings::{Limits, Rate};

/// From this many lanes on, those that have nothing to do are cleared away.
const MANY_LANES: usize = 1_024;

/// A request on its way, with what is known of it so far.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) row: u64,
    pub(crate) id: Option<Box<str>>,
    pub(crate) request: Arc<Request>,
    /// Attempts that have been started.
    pub(crate) attempts: u32,
    /// When the first one was.
    pub(crate) started: Option<(Instant, SystemTime)>,
    pub(crate) lane: LaneId,
    /// Of the memory for what waits: held while it waits here.
    pub(crate) share: Share,
}

/// Which lane a job is in. Valid for as long as the job is waiting or running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LaneId(usize);

/// What [`Lanes::next`] found.
#[derive(Debug)]
pub(crate) enum Turn {
    Start(Job),
    /// Nothing before this instant, unless a job is done or comes in.
    At(Instant),
    /// Nothing until a job is done or comes in.
    Idle,
}

#[derive(Debug)]
pub(crate) struct Lanes {
    per_host: usize,
    rate_per_host: Option<Rate>,
    /// Whether a new host is asked one thing first, because the answer may ask for more distance.
    careful: bool,
    rate: Option<DefaultDirectRateLimiter>,
    /// A token of `rate` that is taken already.
    token: bool,
    lanes: Vec<Lane>,
    unused: Vec<LaneId>,
    by_origin: HashMap<Origin, LaneId>,
    /// Where the job that came last went: often the next one goes there as well.
    latest: LaneId,
    /// Those that could start a job, in turn.
    ready: VecDeque<LaneId>,
    /// Those that can do so later, by the instant.
    asleep: BinaryHeap<Reverse<(Instant, LaneId)>>,
    waiting: usize,
    /// No row beyond this one starts.
    horizon: u64,
    /// Lanes that could start a job, or could do so sooner, if the horizon were farther.
    beyond: Vec<LaneId>,
    /// With so many lanes, those that have nothing to do are cleared away.
    many: usize,
}

#[derive(Debug, Default)]
struct Lane {
    origin: Option<Origin>,
    queue: VecDeque<Job>,
    /// Second attempts, by the instant before which they may not start, and the row.
    delayed: BTreeMap<(Instant, u64), Job>,
    running: usize,
    most: usize,
    not_before: Option<Instant>,
    spacing: Duration,
    rate: Option<DefaultDirectRateLimiter>,
    /// When the last job started.
    last: Option<Instant>,
    /// In which of the lists of [`Lanes`] it stands: `ready`, `asleep` until this instant (other entries there are
    /// stale), `beyond`.
    ready: bool,
    alarm: Option<Instant>,
    beyond: bool,
}

/// Why a lane starts nothing.
enum Pause {
    Until(Instant),
    /// Until the horizon is farther, or this instant if there is one.
    Horizon(Option<Instant>),
    Idle,
}

impl Lanes {
    pub(crate) fn new(limits: &Limits, careful: bool) -> Self {
        Lanes {
            per_host: limits.per_host,
            rate_per_host: limits.rate_per_host,
            careful,
            rate: limits.rate.map(bucket),
            token: false,
            lanes: Vec::new(),
            unused: Vec::new(),
            by_origin: HashMap::new(),
            latest: LaneId::default(),
            ready: VecDeque::new(),
            asleep: BinaryHeap::new(),
            waiting: 0,
            horizon: u64::MAX,
            beyond: Vec::new(),
            many: MANY_LANES,
        }
    }

    /// From now on no row beyond this one starts.
    pub(crate) fn set_horizon(&mut self, row: u64) {
        if std::mem::replace(&mut self.horizon, row) < row {
            for id in std::mem::take(&mut self.beyond) {
                self.lane(id).beyond = false;
                self.settle(id);
            }
        }
    }

    /// How many jobs wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Adds a new job to the lane of its origin.
    pub(crate) fn push(&mut self, row: u64, id: Option<Box<str>>, request: Arc<Request>, share: Share) {
        let lane = self.lane_for(&request);
        self.latest = lane;
        let job = Job { row, id, request, attempts: 0, started: None, lane, share };
        self.lane(lane).queue.push_back(job);
        self.waiting += 1;
        self.settle(lane);
    }

    /// Adds a job whose attempt failed and that is to be tried again, not before `at`.
    pub(crate) fn push_again(&mut self, mut job: Job, at: Instant) {
        job.share.take_again();
        let lane = job.lane;
        self.lane(lane).delayed.insert((at, job.row), job);
        self.waiting += 1;
        self.settle(lane);
    }

    /// The next job that may start, whose slot in its lane is then taken until [`done`](Self::done).
    pub(crate) fn next(&mut self, now: Instant) -> Turn {
        while let Some(&Reverse((at, id))) = self.asleep.peek() {
            if at > now {
                break;
            }
            self.asleep.pop();
            let lane = self.lane(id);
            if lane.alarm == Some(at) {
                lane.alarm = None;
                self.settle(id);
            }
        }
        while let Some(&id) = self.ready.front() {
            if !self.token
                && let Some(rate) = &self.rate
                && let Some(at) = refusal(rate, now)
            {
                return Turn::At(at);
            }
            self.token = true;
            self.ready.pop_front();
            let horizon = self.horizon;
            let lane = self.lane(id);
            lane.ready = false;
            match lane.start(now, horizon) {
                Ok(mut job) => {
                    job.share.give_back();
                    self.token = false;
                    self.waiting -= 1;
                    self.settle(id);
                    return Turn::Start(job);
                }
                Err(pause) => self.pause(id, pause),
            }
        }
        self.asleep.peek().map_or(Turn::Idle, |&Reverse((at, _))| Turn::At(at))
    }

    /// An attempt has ended: its slot is free.
    pub(crate) fn done(&mut self, id: LaneId) {
        let per_host = self.per_host;
        let lane = self.lane(id);
        lane.running -= 1;
        lane.most = per_host;
        self.settle(id);
    }

    /// Nothing of this lane starts before `until`.
    pub(crate) fn hold(&mut self, id: LaneId, until: Instant) {
        let lane = self.lane(id);
        lane.not_before = lane.not_before.max(Some(until));
    }

    /// Keeps at least this much time between the starts of a lane.
    pub(crate) fn space(&mut self, id: LaneId, spacing: Duration) {
        let lane = self.lane(id);
        lane.spacing = spacing;
        // Also from the start that brought the wish.
        let next = lane.last.and_then(|last| last.checked_add(spacing));
        lane.not_before = lane.not_before.max(next);
    }

    /// Takes out everything that waits.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Job> + '_ {
        self.waiting = 0;
        self.lanes
            .iter_mut()
            .flat_map(|lane| lane.queue.drain(..).chain(std::mem::take(&mut lane.delayed).into_values()))
    }

    /// The hosts with the most at once: name, running, waiting.
    pub(crate) fn busiest(&self, count: usize) -> Vec<(String, usize, usize)> {
        let mut busy: Vec<_> = self.lanes.iter().filter(|lane| lane.running > 0).collect();
        busy.sort_by_key(|lane| Reverse((lane.running, lane.queue.len())));
        let shown = |lane: &&Lane| {
            let name = lane.origin.as_ref().map(ToString::to_string).unwrap_or_default();
            (name, lane.running, lane.queue.len() + lane.delayed.len())
        };
        busy.iter().take(count).map(shown).collect()
    }

    fn lane(&mut self, id: LaneId) -> &mut Lane {
        &mut self.lanes[id.0]
    }

    fn lane_for(&mut self, request: &Request) -> LaneId {
        let latest = self.lanes.get(self.latest.0).and_then(|lane| lane.origin.as_ref());
        if latest.is_some_and(|origin| origin.is_of(&request.url)) {
            return self.latest;
        }
        let origin = request.origin();
        match self.by_origin.get(&origin) {
            Some(&lane) => lane,
            None => self.open(origin),
        }
    }

    fn open(&mut self, origin: Origin) -> LaneId {
        if self.by_origin.len() >= self.many {
            (0..self.lanes.len()).for_each(|id| self.close(LaneId(id)));
            // As seldom as the number doubles, so that the work is a little for each.
            self.many = MANY_LANES.max(2 * self.by_origin.len());
        }
        let lane = Lane {
            origin: Some(origin.clone()),
            most: if self.careful { 1 } else { self.per_host },
            rate: self.rate_per_host.map(bucket),
            ..Lane::default()
        };
        let id = match self.unused.pop() {
            Some(id) => {
                self.lanes[id.0] = lane;
                id
            }
            None => {
                self.lanes.push(lane);
                LaneId(self.lanes.len() - 1)
            }
        };
        self.by_origin.insert(origin, id);
        id
    }

    /// Forgets a lane that has nothing to do and nothing to remember.
    fn close(&mut self, id: LaneId) {
        let full = self.rate_per_host.map_or(Duration::ZERO, |rate| rate.interval.saturating_mul(rate.burst.get()));
        let lane = self.lane(id);
        let remembers = lane.not_before.is_some_and(|at| at > Instant::now())
            || lane.last.is_some_and(|last| last.elapsed() < full);
        if lane.running > 0 || lane.has_work() || lane.is_listed() || remembers {
            return;
        }
        if let Some(origin) = std::mem::take(lane).origin {
            self.by_origin.remove(&origin);
            self.unused.push(id);
        }
    }

    /// Puts a lane that can't start a job now where it is found when it can.
    fn pause(&mut self, id: LaneId, pause: Pause) {
        let (until, beyond) = match pause {
            Pause::Until(at) => (Some(at), false),
            Pause::Horizon(at) => (at, true),
            Pause::Idle => (None, false),
        };
        let lane = self.lane(id);
        let beyond = beyond && !std::mem::replace(&mut lane.beyond, true);
        // One that rings sooner will do: the lane looks again.
        let until = until.filter(|&at| lane.alarm.is_none_or(|alarm| at < alarm));
        if let Some(at) = until {
            lane.alarm = Some(at);
            self.asleep.push(Reverse((at, id)));
        }
        if beyond {
            self.beyond.push(id);
        }
    }

    /// Puts a lane that could start a job among the ready ones.
    fn settle(&mut self, id: LaneId) {
        let lane = self.lane(id);
        if lane.ready || lane.running >= lane.most || !lane.has_work() {
            return;
        }
        // Also one that is asleep: what came in may be due before what it waits for.
        lane.ready = true;
        self.ready.push_back(id);
    }
}

impl Lane {
    fn has_work(&self) -> bool {
        !self.queue.is_empty() || !self.delayed.is_empty()
    }

    fn is_listed(&self) -> bool {
        self.ready || self.alarm.is_some() || self.beyond
    }

    /// The next job, or when there may be one.
    fn start(&mut self, now: Instant, horizon: u64) -> Result<Job, Pause> {
        if self.running >= self.most || !self.has_work() {
            return Err(Pause::Idle);
        }
        if let Some(at) = self.not_before.filter(|&at| at > now) {
            return Err(Pause::Until(at));
        }
        let within = |&(_, row): &(Instant, u64)| row <= horizon;
        let due = self.delayed.range(..=(now, u64::MAX)).map(|(&key, _)| key).find(within);
        if due.is_none() && self.queue.front().is_none_or(|job| job.row > horizon) {
            return Err(Pause::Horizon(self.delayed.keys().copied().find(within).map(|(at, _)| at)));
        }
        if let Some(at) = self.rate.as_ref().and_then(|rate| refusal(rate, now)) {
            return Err(Pause::Until(at));
        }
        let job = match due {
            Some(key) => self.delayed.remove(&key),
            None => self.queue.pop_front(),
        };
        let job = job.ok_or(Pause::Idle)?;
        self.running += 1;
        self.last = Some(now);
        self.not_before = if self.spacing.is_zero() { None } else { now.checked_add(self.spacing) };
        Ok(job)
    }
}

fn bucket(rate: Rate) -> DefaultDirectRateLimiter {
    // Without a period there is no limit; a nanosecond is as good as none.
    let quota = Quota::with_period(rate.interval.max(Duration::from_nanos(1)));
    RateLimiter::direct(quota.unwrap_or_else(|| Quota::per_second(rate.burst)).allow_burst(rate.burst))
}

/// Takes a token, or says when there is one.
fn refusal(rate: &DefaultDirectRateLimiter, now: Instant) -> Option<Instant> {
    rate.check().err().map(|refused| now + refused.wait_time_from(DefaultClock::default().now()))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::request::Payload;
    use crate::settings::Concurrency;

    fn limits(per_host: usize) -> Limits {
        Limits {
            concurrency: Concurrency::Fixed(64),
            per_host,
            rate: None,
            rate_per_host: None,
            deadline: None,
            lookahead: 100,
            grace: Duration::ZERO,
        }
    }

    fn push(lanes: &mut Lanes, row: u64, url: &str) {
        let request = Request {
            url: url.parse().expect("a URL"),
            method: reqwest::Method::GET,
            headers: Default::default(),
            body: Payload::None,
            timeout: None,
        };
        lanes.push(row, None, Arc::new(request), Share::default());
    }

    /// Starts all that may start; the rows in order.
    fn start_all(lanes: &mut Lanes, now: Instant) -> (Vec<Job>, Turn) {
        let mut jobs = Vec::new();
        loop {
            match lanes.next(now) {
                Turn::Start(job) => jobs.push(job),
                other => return (jobs, other),
            }
        }
    }

    fn rows(jobs: &[Job]) -> Vec<u64> {
        jobs.iter().map(|job| job.row).collect()
    }

    #[test]
    fn hosts_take_turns_up_to_their_limit() {
        let mut lanes = Lanes::new(&limits(2), false);
        for (row, url) in (1..).zip(["http://a/1", "http://a/2", "http://a/3", "http://b/1", "http://b:81/1"]) {
            push(&mut lanes, row, url);
        }
        let now = Instant::now();
        let (jobs, turn) = start_all(&mut lanes, now);
        assert_eq!(rows(&jobs), [1, 4, 5, 2]);
        assert!(matches!(turn, Turn::Idle));
        assert_eq!(lanes.waiting(), 1);
        assert_eq!(lanes.busiest(1), [("a".to_owned(), 2, 1)]);
        lanes.done(jobs[0].lane);
        assert_eq!(rows(&start_all(&mut lanes, now).0), [3]);
    }

    #[test]
    fn a_lane_that_was_cleared_away_is_not_that_of_the_next_job() {
        let mut lanes = Lanes::new(&limits(1), false);
        let now = Instant::now();
        let lane_of = |lanes: &mut Lanes, url| {
            push(lanes, 1, url);
            let (jobs, _) = start_all(lanes, now);
            lanes.done(jobs[0].lane);
            jobs[0].lane
        };
        let a = lane_of(&mut lanes, "http://a/");
        assert_eq!([lane_of(&mut lanes, "http://a/"), lane_of(&mut lanes, "http://a:80/")], [a, a]);
        for other in ["https://a/", "http://a:81/", "https://a:80/", "http://a.b/"] {
            assert_ne!(lane_of(&mut lanes, other), a);
            assert_eq!(lane_of(&mut lanes, "http://a/"), a);
        }
        assert_eq!(lane_of(&mut lanes, "http://a/"), a);
        lanes.close(a);
        assert_eq!(lane_of(&mut lanes, "http://b/"), a, "it is used again");
        assert_ne!(lane_of(&mut lanes, "http://a/"), a);
        assert_eq!(lane_of(&mut lanes, "http://b/"), a);
    }

    #[test]
    fn a_held_host_waits_and_others_do_not() {
        let mut lanes = Lanes::new(&limits(1), false);
        push(&mut lanes, 1, "http://a/");
        push(&mut lanes, 2, "http://a/");
        push(&mut lanes, 3, "http://b/");
        let now = Instant::now();
        let (jobs, _) = start_all(&mut lanes, now);
        assert_eq!(rows(&jobs), [1, 3]);
        let until = now + Duration::from_secs(5);
        lanes.hold(jobs[0].lane, until);
        lanes.done(jobs[0].lane);
        let (none, turn) = start_all(&mut lanes, now);
        assert!(none.is_empty());
        assert!(matches!(turn, Turn::At(at) if at == until), "{turn:?}");
        assert_eq!(rows(&start_all(&mut lanes, until).0), [2]);
    }

    #[test]
    fn a_second_attempt_waits_without_holding_up_its_host() {
        let mut lanes = Lanes::new(&limits(1), false);
        push(&mut lanes, 1, "http://a/");
        push(&mut lanes, 2, "http://a/");
        let now = Instant::now();
        let job = start_all(&mut lanes, now).0.remove(0);
        let (lane, at) = (job.lane, now + Duration::from_secs(1));
        lanes.push_again(job, at);
        lanes.done(lane);
        assert_eq!(rows(&start_all(&mut lanes, now).0), [2]);
        lanes.done(lane);
        assert!(matches!(lanes.next(now), Turn::At(instant) if instant == at));
        assert_eq!(rows(&start_all(&mut lanes, at).0), [1]);
    }

    #[test]
    fn what_comes_in_while_a_lane_sleeps_is_started() {
        let mut lanes = Lanes::new(&limits(2), false);
        push(&mut lanes, 1, "http://a/");
        let now = Instant::now();
        let job = start_all(&mut lanes, now).0.remove(0);
        let (lane, at) = (job.lane, now + Duration::from_secs(9));
        lanes.push_again(job, at);
        lanes.done(lane);
        assert!(matches!(lanes.next(now), Turn::At(_)));
        push(&mut lanes, 2, "http://a/");
        assert_eq!(rows(&start_all(&mut lanes, now).0), [2]);
    }

    #[test]
    fn rates_are_kept_for_all_and_for_each_host() {
        let slow = Rate { interval: Duration::from_secs(3600), burst: NonZeroU32::new(2).expect("two") };
        let mut lanes = Lanes::new(&Limits { rate_per_host: Some(slow), ..limits(9) }, false);
        for row in 1..=3 {
            push(&mut lanes, row, "http://a/");
        }
        push(&mut lanes, 4, "http://b/");
        let now = Instant::now();
        let (jobs, turn) = start_all(&mut lanes, now);
        assert_eq!(rows(&jobs), [1, 4, 2]);
        assert!(matches!(turn, Turn::At(at) if at > now + Duration::from_secs(3000)), "{turn:?}");

        let mut lanes = Lanes::new(&Limits { rate: Some(slow), ..limits(9) }, false);
        for row in 1..=3 {
            push(&mut lanes, row, &format!("http://host{row}/"));
        }
        let (jobs, turn) = start_all(&mut lanes, now);
        assert_eq!(rows(&jobs), [1, 2]);
        assert!(matches!(turn, Turn::At(at) if at > now + Duration::from_secs(3000)), "{turn:?}");
        assert_eq!(lanes.waiting(), 1);
    }

    #[test]
    fn a_careful_start_asks_one_thing_first_and_keeps_its_distance() {
        let mut lanes = Lanes::new(&limits(4), true);
        for row in 1..=3 {
            push(&mut lanes, row, "http://a/");
        }
        let now = Instant::now();
        let (jobs, _) = start_all(&mut lanes, now);
        assert_eq!(rows(&jobs), [1]);
        let distance = Duration::from_secs(2);
        lanes.space(jobs[0].lane, distance);
        lanes.done(jobs[0].lane);
        for row in 2..=3 {
            let from = now + distance * (row - 2);
            let (jobs, turn) = start_all(&mut lanes, from);
            assert!(jobs.is_empty(), "the distance is kept from the first start on");
            assert!(matches!(turn, Turn::At(at) if at == from + distance), "{turn:?}");
            assert_eq!(rows(&start_all(&mut lanes, from + distance).0), [u64::from(row)]);
        }
    }

    #[test]
    fn nothing_beyond_the_horizon_starts_and_nothing_within_it_is_held_up() {
        let mut lanes = Lanes::new(&limits(9), false);
        for row in 1..=6 {
            push(&mut lanes, row, if row % 2 == 0 { "http://a/" } else { "http://b/" });
        }
        let now = Instant::now();
        lanes.set_horizon(3);
        let (mut jobs, turn) = start_all(&mut lanes, now);
        jobs.sort_by_key(|job| job.row);
        assert_eq!(rows(&jobs), [1, 2, 3]);
        assert!(matches!(turn, Turn::Idle), "{turn:?}");
        // Two second attempts, the later row first; and the horizon comes nearer.
        let third = jobs.pop().expect("three");
        let first = jobs.remove(0);
        let (lane, later) = (first.lane, now + Duration::from_secs(1));
        lanes.push_again(third, now);
        lanes.push_again(first, later);
        lanes.done(lane);
        lanes.done(lane);
        lanes.set_horizon(1);
        let (none, turn) = start_all(&mut lanes, now);
        assert!(none.is_empty());
        assert!(matches!(turn, Turn::At(at) if at == later), "{turn:?}");
        assert_eq!(rows(&start_all(&mut lanes, later).0), [1]);
        lanes.set_horizon(6);
        let mut rest = rows(&start_all(&mut lanes, later + Duration::from_secs(1)).0);
        rest.sort_unstable();
        assert_eq!(rest, [3, 4, 5, 6]);
    }

    #[test]
    fn a_lane_that_sleeps_starts_what_a_farther_horizon_allows() {
        let mut lanes = Lanes::new(&limits(9), false);
        for row in 1..=3 {
            push(&mut lanes, row, "http://a/");
        }
        let now = Instant::now();
        lanes.set_horizon(1);
        let first = start_all(&mut lanes, now).0.remove(0);
        let (lane, later) = (first.lane, now + Duration::from_secs(9));
        lanes.push_again(first, later);
        lanes.done(lane);
        for row in 2..=3 {
            let (none, turn) = start_all(&mut lanes, now);
            assert!(none.is_empty());
            assert!(matches!(turn, Turn::At(at) if at == later), "{turn:?}");
            lanes.set_horizon(row);
            assert_eq!(rows(&start_all(&mut lanes, now).0), [row]);
        }
        assert_eq!(lanes.asleep.len(), 1, "it is woken once for the same instant");
        assert_eq!(rows(&start_all(&mut lanes, later).0), [1]);
    }

    #[test]
    fn lanes_of_a_million_hosts_do_not_pile_up() {
        let mut lanes = Lanes::new(&limits(1), false);
        let now = Instant::now();
        for row in 0..5_000 {
            push(&mut lanes, row, &format!("http://host{row}/"));
            let (jobs, _) = start_all(&mut lanes, now);
            lanes.done(jobs[0].lane);
        }
        assert!(lanes.lanes.len() <= MANY_LANES + 1, "{}", lanes.lanes.len());

        let rate = Rate { interval: Duration::from_nanos(10), burst: NonZeroU32::MIN };
        let mut lanes = Lanes::new(&Limits { rate_per_host: Some(rate), ..limits(1) }, false);
        for row in 0..5_000 {
            push(&mut lanes, row, &format!("http://host{row}/"));
            let (jobs, _) = start_all(&mut lanes, now);
            lanes.done(jobs[0].lane);
        }
        assert!(lanes.lanes.len() <= MANY_LANES + 1, "{}", lanes.lanes.len());
    }

    #[test]
    fn draining_leaves_nothing() {
        let mut lanes = Lanes::new(&limits(1), false);
        push(&mut lanes, 1, "http://a/");
        push(&mut lanes, 2, "http://b/");
        assert_eq!(lanes.drain().count(), 2);
        assert_eq!(lanes.waiting(), 0);
        assert!(matches!(lanes.next(Instant::now()), Turn::Idle));
    }
}
