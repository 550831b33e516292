//! Who reads the replies of a connection when futures wait for them: the protocol, without a thread, a lock or a
//! socket in it. (`client.rs` does what it says; `integration-tests/tests/loom_lead.rs` runs it through all
//! interleavings.)
//!
//! A reply that a background thread reads costs two switches, to that thread and on to the runtime's, and with many
//! calls in flight those cost more than all the rest. A future that is polled could as well look for itself; but it
//! can't stay, and when the last one has gone to sleep somebody must wait for the next reply. Hence:
//!
//! * A future **looks** when it is polled: it reads the replies that have come, all of them, and hands them out.
//! * If its own is not among them, it **comes back**: it wakes itself, so its runtime runs what else is to be run and
//!   polls it again. One future does so, for all. It has *promised* to look.
//! * It reads little at a time, and nothing that is long: that is left to the background thread.
//! * If nothing comes for a while, it breaks off, and the background thread **listens**: it sleeps at the connection.
//!   When it has read what came, it wakes the future that was polled last, which is to look and promise again.
//! * A promise may not be kept: the task is busy, or was forgotten. So as long as there is one, the background thread
//!   **watches**: if nobody has looked for a while, it listens. That calls are sent meanwhile is no sign that anybody
//!   looks.
//!
//! Coming back is spinning, and pays only when replies come quickly: [`Credit`] sees to it that where they don't, the
//! background thread listens at once, as if all this did not exist.
//!
//! All of it is under one lock, that of the connection's state. What always holds when it is free and calls of futures
//! are pending: somebody has the reader, or the background thread is awake or will be after a while.

/// Who looks for replies. Calls are known by their numbers, which rise.
#[derive(Debug)]
pub(crate) struct Lead {
    /// How many of the pending calls have been polled: their tasks may be asleep.
    polled: usize,
    /// The last of them. Replies come in order, mostly, so that who waits for it reads those of all the others.
    newest: Option<u64>,
    /// The call whose future comes back.
    promised: Option<u64>,
    turn: Turn,
    /// It has watched once for calls that were sent, and nobody has looked since.
    watched: bool,
    /// The background thread sleeps until it is told that there is something to do.
    idle: bool,
    credit: Credit,
}

/// What the background thread is to know when it looks next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Nothing has happened since it last looked.
    Quiet,
    /// A call was sent, whose future is about to be polled.
    Sent,
    /// Somebody has looked, or has just been woken to do so.
    Looked,
    /// It is to listen.
    Listen,
}

/// Who is to be woken by whoever has put the reader back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "somebody may have to be woken"]
pub(crate) struct Next {
    /// The background thread, to listen or to watch.
    pub(crate) background: bool,
    /// The future of this call, which has the promise and looks.
    pub(crate) future: Option<u64>,
}

impl Lead {
    /// With `most_credit`, or none, so that nobody ever comes back.
    pub(crate) fn new(most_credit: i32) -> Self {
        Lead {
            polled: 0,
            newest: None,
            promised: None,
            turn: Turn::Quiet,
            watched: false,
            idle: false,
            credit: Credit { most: most_credit, left: most_credit / 2, skip: 0, skipped: 0 },
        }
    }

    /// A call of a future was sent. If futures don't look, the background thread is to listen; otherwise nobody sleeps
    /// for this one before it is polled. Whether the background thread is to be woken.
    ///
    /// It buys no time for a promise, nor a second while when nobody has looked in the first: calls that keep coming
    /// would put off for ever what others wait for.
    pub(crate) fn sent(&mut self, looks: bool) -> bool {
        if !looks {
            self.turn = Turn::Listen;
        } else if self.turn == Turn::Quiet && self.promised.is_none() && !self.watched {
            self.turn = Turn::Sent;
        }
        self.idle || !looks
    }

    /// A call was polled for the first time, and is pending.
    pub(crate) fn polled(&mut self, id: u64) {
        self.polled += 1;
        self.newest = self.newest.max(Some(id));
    }

    /// A call that was polled has its outcome, or nobody waits for it any more.
    pub(crate) fn settled(&mut self, id: u64) {
        self.polled = self.polled.saturating_sub(1);
        self.newest = self.newest.filter(|newest| *newest != id);
        self.promised = self.promised.filter(|promised| *promised != id);
    }

    /// Whether the future of this call, which is polled, is to look: not when another one comes back anyway, and not
    /// when somebody else `reads`, who sees to it what happens next. If it has promised, it has come back herewith.
    pub(crate) fn looks(&mut self, id: u64, reads: bool) -> bool {
        let mine = self.promised.is_none_or(|promised| promised == id);
        if mine {
            self.promised = None;
        }
        mine && !reads
    }

    /// Replies were found by looking.
    pub(crate) fn found(&mut self) {
        self.watched = false;
        if matches!(self.turn, Turn::Quiet | Turn::Sent) {
            self.turn = Turn::Looked;
        }
        self.credit.gain();
    }

    /// The future has looked and put the reader back, and has found nothing of its own; `late` when nobody has found
    /// anything for long. It promises to come back if it is told to wake itself.
    pub(crate) fn looked(&mut self, id: u64, late: bool) -> Next {
        if late {
            self.credit.lose();
        }
        self.watched = false;
        self.promised = Some(id).filter(|_| !late && self.credit.allows());
        self.turn = if self.promised.is_some() { Turn::Looked } else { Turn::Listen };
        Next { background: self.idle || self.turn == Turn::Listen, future: self.promised }
    }

    /// The future has looked and put the reader back, and what comes next takes too long for it: the background thread
    /// is to read that.
    pub(crate) fn passed(&mut self) -> Next {
        self.watched = false;
        self.turn = Turn::Listen;
        Next { background: true, future: None }
    }

    /// The reader was put back: who is next? `pending` says how many calls of futures have no reply yet.
    pub(crate) fn rest(&mut self, pending: usize) -> Next {
        self.watched = false;
        if pending == 0 {
            return Next { background: false, future: None };
        }
        let (turn, future) = if self.polled == 0 || self.promised.is_some() {
            // Nobody sleeps for a reply, or somebody comes back.
            (Turn::Looked, None)
        } else {
            match self.newest.filter(|_| self.credit.allows()) {
                Some(newest) => (Turn::Looked, Some(newest)),
                None => (Turn::Listen, None),
            }
        };
        self.promised = self.promised.or(future);
        self.turn = turn;
        Next { background: self.idle || turn == Turn::Listen, future }
    }

    /// What the background thread does now. `pending` is the number of calls of futures without a reply, or 0 when
    /// somebody else has the reader.
    pub(crate) fn background(&mut self, pending: usize) -> Background {
        match std::mem::replace(&mut self.turn, Turn::Quiet) {
            Turn::Sent => {
                self.watched = true;
                return Background::Watch;
            }
            Turn::Looked => return Background::Watch,
            Turn::Quiet | Turn::Listen => {}
        }
        if pending == 0 {
            self.idle = true;
            self.watched = false;
            return Background::Sleep;
        }
        if self.promised.take().is_some() {
            // The promise was not kept.
            self.credit.lose();
        }
        Background::Listen
    }

    /// The background thread is awake.
    pub(crate) fn awake(&mut self) {
        self.idle = false;
    }
}

/// What the background thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Background {
    /// It waits until it is told, or until a while has passed.
    Watch,
    /// It waits until it is told.
    Sleep,
    /// It takes the reader, and waits for a reply.
    Listen,
}

/// Whether to come back. A promise that finds something gains, one that finds nothing costs, and without credit the
/// next ones are not made: 16 of them, then twice as many each time.
#[derive(Debug)]
struct Credit {
    most: i32,
    left: i32,
    skip: u32,
    skipped: u32,
}

impl Credit {
    fn allows(&mut self) -> bool {
        if self.most == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        true
    }

    fn gain(&mut self) {
        self.left = (self.left + 1).min(self.most);
        self.skipped = 0;
    }

    fn lose(&mut self) {
        self.left -= 4;
        if self.left <= 0 {
            self.left = 0;
            self.skipped = (self.skipped * 2).clamp(16, 1_024);
            self.skip = self.skipped;
        }
    }
}
