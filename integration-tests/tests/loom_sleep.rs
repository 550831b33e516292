//! Who wakes whom in a thread pool, under every interleaving: no task waits while a worker that could run it sleeps.
//!
//! The file with the protocol is included here as it is, with loom's atomics. Around it stands what `pool.rs` does with it, in
//! small: a backlog, two workers, and whoever pushes. A wake-up that is lost is a deadlock, which loom reports; also
//! where the other worker is awake, because there are tasks that wait for each other. A bundle of tasks (`bundle.rs`) is here
//! as well: one entry of the backlog, with a lock of its own.

use std::collections::VecDeque;

use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
use loom::thread;

/// What `sleep.rs` takes from its parent.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicUsize, Ordering};
}

#[path = "../../executor/src/thread/sleep.rs"]
mod sleep;

use sleep::Sleep;

const WORKERS: usize = 2;

/// A task.
#[derive(Clone, Copy, Default)]
struct Task {
    number: usize,
    /// Another one that must have run before it ends.
    waits_for: Option<usize>,
    /// Nobody takes its value, which goes with its worker; and that ends only when this other task has run.
    drop_waits_for: Option<usize>,
}

fn task(number: usize) -> Task {
    Task { number, ..Task::default() }
}

/// What lies in the backlog.
enum Entry {
    Task(Task),
    /// The bundle; there is one.
    Bundle,
}

#[derive(Default)]
struct Bundle {
    waiting: VecDeque<Task>,
    /// How many workers have come for a task and not taken it.
    claims: usize,
    /// It is in the backlog, or on its way there.
    is_queued: bool,
}

impl Bundle {
    /// The next task that nobody else has come for.
    fn begin(&mut self) -> Option<Task> {
        if self.waiting.len() > self.claims { self.waiting.pop_front() } else { None }
    }
}

/// What a worker has found.
enum Found {
    Task(Task),
    Bundle,
}

struct World {
    backlog: Mutex<VecDeque<Entry>>,
    bundle: Mutex<Bundle>,
    state: Mutex<State>,
    bells: [Condvar; WORKERS],
    sleep: Sleep,
    done: Mutex<Vec<usize>>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    idle: Vec<usize>,
    woken: [bool; WORKERS],
    closed: bool,
}

impl World {
    fn new() -> Self {
        World {
            backlog: Mutex::default(),
            bundle: Mutex::default(),
            state: Mutex::new(State { idle: (0..WORKERS).collect(), ..State::default() }),
            bells: [Condvar::new(), Condvar::new()],
            sleep: Sleep::new(WORKERS),
            done: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    fn push(&self, task: Task) {
        self.submit(Entry::Task(task));
    }

    /// Into the bundle, which is submitted if it isn't in the backlog; or alone, while the bundle may come back to its turn.
    fn push_bundled(&self, task: Task) {
        let was_queued = {
            let mut bundle = self.bundle.lock().unwrap();
            if !bundle.is_queued && bundle.claims > 0 {
                None
            } else {
                bundle.waiting.push_back(task);
                Some(std::mem::replace(&mut bundle.is_queued, true))
            }
        };
        match was_queued {
            None => self.push(task),
            Some(false) => self.submit(Entry::Bundle),
            Some(true) => {}
        }
    }

    /// What comes next. A bundle stays for others to find, as long as more waits in it than the one who came can take.
    fn pop(&self) -> Option<Found> {
        let mut backlog = self.backlog.lock().unwrap();
        loop {
            if let Entry::Task(task) = backlog.front()? {
                let task = *task;
                backlog.pop_front();
                return Some(Found::Task(task));
            }
            let mut bundle = self.bundle.lock().unwrap();
            let free = bundle.waiting.len() - bundle.claims;
            bundle.claims += usize::from(free > 0);
            bundle.is_queued = free > 1;
            if !bundle.is_queued {
                backlog.pop_front();
            }
            if free > 0 {
                return Some(Found::Bundle);
            }
        }
    }

    fn submit(&self, entry: Entry) {
        self.backlog.lock().unwrap().push_back(entry);
        if self.sleep.needs_wake() {
            self.wake_for_more(self.state.lock().unwrap());
        }
    }

    fn wake_for_more(&self, mut state: MutexGuard<'_, State>) {
        if self.sleep.searching() > 0 || state.idle.is_empty() || self.backlog.lock().unwrap().is_empty() {
            return;
        }
        let worker = state.idle.pop().unwrap();
        self.sleep.search(1);
        self.sleep.set_spare(state.idle.len());
        state.woken[worker] = true;
        self.bells[worker].notify_one();
    }

    /// Sleeps until it is woken; `false` when the pool is closed.
    fn park<'a>(&'a self, me: usize, mut state: MutexGuard<'a, State>) -> bool {
        while !state.woken[me] {
            if state.closed {
                return false;
            }
            state = self.bells[me].wait(state).unwrap();
        }
        state.woken[me] = false;
        true
    }

    fn work(&self, me: usize) {
        if !self.park(me, self.state.lock().unwrap()) {
            return;
        }
        let mut searches = true;
        let mut value = None;
        loop {
            let found = self.pop();
            if let Some(found) = found {
                self.found(&mut searches);
                match found {
                    Found::Task(task) => {
                        value = self.run(task);
                        self.end(&mut searches);
                        self.publish(task);
                    }
                    Found::Bundle => self.visit(&mut searches),
                }
                continue;
            }
            if let Some(other) = value.take() {
                self.found(&mut searches);
                if self.sleep.needs_wake() {
                    self.wake_for_more(self.state.lock().unwrap());
                }
                self.wait_for(other);
            }
            if !std::mem::replace(&mut searches, true) {
                self.sleep.search(1);
            }
            let mut state = self.state.lock().unwrap();
            state.idle.push(me);
            self.sleep.lie_down(state.idle.len());
            if !self.backlog.lock().unwrap().is_empty() {
                state.idle.pop();
                self.sleep.stand_up(state.idle.len());
                continue;
            }
            if !self.park(me, state) {
                return;
            }
        }
    }

    /// Runs what is in the bundle, one after another.
    fn visit(&self, searches: &mut bool) {
        let mut turn = {
            let mut bundle = self.bundle.lock().unwrap();
            bundle.claims -= 1;
            bundle.begin()
        };
        assert!(turn.is_some(), "a task that was claimed is there");
        while let Some(task) = turn {
            self.run(task);
            let mut bundle = self.bundle.lock().unwrap();
            turn = bundle.begin();
            if turn.is_none() {
                self.end(searches);
            }
            self.publish(task);
        }
    }

    /// Whose end the value of the task waits for.
    fn run(&self, task: Task) -> Option<usize> {
        if let Some(other) = task.waits_for {
            self.wait_for(other);
        }
        task.drop_waits_for
    }

    /// The worker is about to publish its last outcome, and looks for more from now on.
    fn end(&self, searches: &mut bool) {
        if self.sleep.has_spare() && !std::mem::replace(searches, true) {
            self.sleep.search(1);
        }
    }

    fn publish(&self, task: Task) {
        self.done.lock().unwrap().push(task.number);
        self.ended.notify_all();
    }

    fn found(&self, searches: &mut bool) {
        if std::mem::replace(searches, false) && self.sleep.found() {
            self.wake_for_more(self.state.lock().unwrap());
        }
    }

    fn wait_for(&self, task: usize) {
        let mut done = self.done.lock().unwrap();
        while !done.contains(&task) {
            done = self.ended.wait(done).unwrap();
        }
    }

    fn close(&self) {
        self.state.lock().unwrap().closed = true;
        self.bells.iter().for_each(Condvar::notify_one);
    }
}

fn model(play: fn(&World)) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(move || {
        let world = Arc::new(World::new());
        let workers: Vec<_> = (0..WORKERS)
            .map(|me| {
                let world = world.clone();
                thread::spawn(move || world.work(me))
            })
            .collect();
        play(&world);
        world.close();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
}

#[test]
fn each_task_is_run_however_late_it_comes() {
    model(|world| {
        // The second push falls in any moment of the worker's way from the first task to its sleep.
        world.push(task(1));
        world.push(task(2));
        world.wait_for(1);
        world.wait_for(2);
    });
}

#[test]
fn a_task_that_follows_an_outcome_is_run() {
    model(|world| {
        world.push(task(1));
        world.wait_for(1);
        world.push(task(2));
        world.wait_for(2);
    });
}

#[test]
fn a_busy_worker_does_not_keep_a_task_from_the_other_one() {
    model(|world| {
        world.push(Task { waits_for: Some(2), ..task(1) });
        world.push(task(2));
        world.wait_for(1);
    });
}

#[test]
fn a_worker_that_has_just_run_something_does_not_either() {
    model(|world| {
        world.push(task(1));
        world.push(Task { waits_for: Some(3), ..task(2) });
        world.push(task(3));
        world.wait_for(2);
    });
}

#[test]
fn a_worker_that_drops_a_value_is_not_counted_on() {
    model(|world| {
        world.push(Task { drop_waits_for: Some(2), ..task(1) });
        world.wait_for(1);
        world.push(task(2));
        world.wait_for(2);
    });
}

#[test]
fn a_worker_that_has_dropped_a_value_is_counted_right() {
    model(|world| {
        world.push(Task { drop_waits_for: Some(1), ..task(1) });
        world.wait_for(1);
        world.push(task(2));
        world.wait_for(2);
    });
}

#[test]
fn a_bundled_task_does_not_wait_for_the_one_before() {
    model(|world| {
        world.push_bundled(Task { waits_for: Some(2), ..task(1) });
        world.push_bundled(task(2));
        world.wait_for(1);
    });
}

#[test]
fn a_bundled_task_is_run_however_late_it_comes() {
    model(|world| {
        // The second one falls in any moment of the way of the bundle out of the backlog.
        world.push_bundled(task(1));
        world.wait_for(1);
        world.push_bundled(task(2));
        world.wait_for(2);
    });
}

#[test]
fn a_bundle_does_not_keep_what_is_behind_it() {
    model(|world| {
        world.push_bundled(Task { waits_for: Some(3), ..task(1) });
        world.push_bundled(task(2));
        world.push(task(3));
        world.wait_for(1);
        world.wait_for(2);
    });
}
