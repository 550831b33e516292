//! Who waits for a condition, and who has been notified: plain data, and functions over it with nothing of memory,
//! processes or sleeping. They are steps of a ledger, so they are done one at a time, and wholly or not at all.
//!
//! How many slots there are comes from the parent module; the very same file runs with fewer over loom's threads in
//! `tests/loom_bell.rs`.
//!
//! | a slot is | next | by |
//! |---|---|---|
//! | free | waiting, with the next turn | [`enter`](State::enter) |
//! | waiting | notified, if none has waited longer | [`notify`](State::notify), which rings its bell |
//! | waiting, notified | free | its owner, when it has the lock again ([`leave`](State::leave)), and says whether it was notified |
//! | waiting, notified | free; a notification passes on to the one who has waited longest | anybody who finds its owner dead ([`bury`](State::bury)) |

use std::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::SLOTS;

/// Where the bell of those without a slot stands among the bells.
pub(super) const CROWD: usize = SLOTS;

const NOTIFIED: u32 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Slot {
    /// 0: free.
    seat: u32,
    /// The turn, which also tells one use of the slot from the next, and [`NOTIFIED`].
    turn: u32,
}

const FREE: Slot = Slot { seat: 0, turn: 0 };

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct State {
    /// The next turn; even.
    next: u32,
    /// Whether some wait who found no slot.
    crowd: u32,
    /// From this one on, all slots are free.
    used: u32,
    unused: u32,
    slots: [Slot; SLOTS],
}

impl State {
    /// How many bytes of it matter.
    pub(super) fn extent(&self) -> usize {
        offset_of!(State, slots) + self.used() * size_of::<Slot>()
    }

    /// How many wait and have not been notified.
    pub(super) fn waiting(&self) -> usize {
        (0..self.used()).filter(|at| self.is_waiting(*at)).count()
    }

    /// Gives `me` a slot, if one is free: which, and its turn.
    pub(super) fn enter(&mut self, me: u32) -> Option<(usize, u32)> {
        let used = self.used();
        let free = self.slots[..used].iter().position(|slot| slot.seat == 0);
        let at = free.or((used < SLOTS).then_some(used))?;
        let turn = self.next & !NOTIFIED;
        self.next = turn.wrapping_add(2);
        self.slots[at] = Slot { seat: me, turn };
        self.used = used.max(at + 1) as u32;
        Some((at, turn))
    }

    /// Notes that somebody waits without a slot.
    pub(super) fn enter_crowd(&mut self) {
        self.crowd = 1;
    }

    /// Notifies up to `count` of those who wait, the longest waiting first. Returns how many had a slot.
    pub(super) fn notify(&mut self, count: usize, ring: &mut impl FnMut(usize)) -> usize {
        let mut waiting: Vec<usize> = (0..self.used()).filter(|at| self.is_waiting(*at)).collect();
        // The distance to the next turn, as turns come round.
        waiting.sort_unstable_by_key(|at| std::cmp::Reverse(self.next.wrapping_sub(self.slots[*at].turn)));
        waiting.truncate(count);
        for at in &waiting {
            self.slots[*at].turn |= NOTIFIED;
            ring(*at);
        }
        if self.crowd != 0 && count > 0 {
            // They can't be told apart, so all of them look.
            self.crowd = 0;
            ring(CROWD);
        }
        waiting.len()
    }

    /// Frees the slots of the dead and passes their notifications on. Returns whether there were any.
    pub(super) fn bury(&mut self, me: u32, is_dead: impl Fn(u32) -> bool, ring: &mut impl FnMut(usize)) -> bool {
        let mut changed = false;
        let mut inherited = 0;
        let mut alive = me;
        let used = self.used();
        for slot in &mut self.slots[..used] {
            // Many slots are of the same few processes.
            if slot.seat == 0 || slot.seat == alive {
                continue;
            }
            if is_dead(slot.seat) {
                inherited += usize::from(slot.turn & NOTIFIED != 0);
                *slot = FREE;
                changed = true;
            } else {
                alive = slot.seat;
            }
        }
        if changed {
            self.shrink();
        }
        if inherited > 0 {
            self.notify(inherited, ring);
        }
        changed
    }

    /// Whether there is nothing more to wait for with that slot: it is notified; or it isn't ours any more, so a peer
    /// has meddled, and to wait on would be for ever.
    pub(super) fn is_over(&self, (at, turn): (usize, u32), me: u32) -> bool {
        self.slots.get(at).is_none_or(|slot| slot.seat != me || slot.turn != turn)
    }

    /// Gives the slot back: whether it was notified. `None` if it isn't ours any more.
    pub(super) fn leave(&mut self, (at, turn): (usize, u32), me: u32) -> Option<bool> {
        let slot = self.slots.get_mut(at).filter(|slot| slot.seat == me && slot.turn & !NOTIFIED == turn)?;
        let notified = slot.turn & NOTIFIED != 0;
        *slot = FREE;
        self.shrink();
        Some(notified)
    }

    /// The owners of the slots, one after another, `me` left out.
    pub(super) fn others(&self, me: u32) -> impl Iterator<Item = u32> {
        self.slots[..self.used()].iter().map(|slot| slot.seat).filter(move |seat| *seat != 0 && *seat != me)
    }

    fn used(&self) -> usize {
        (self.used as usize).min(SLOTS)
    }

    fn is_waiting(&self, at: usize) -> bool {
        self.slots[at].seat != 0 && self.slots[at].turn & NOTIFIED == 0
    }

    /// Notes how many are used, after some have been given back.
    fn shrink(&mut self) {
        let used = &self.slots[..self.used()];
        self.used = used.iter().rposition(|slot| slot.seat != 0).map_or(0, |last| last + 1) as u32;
    }
}
