//! What stands in a ring, as numbers: positions, and the heads of records. Pure functions, since a peer may have
//! written anything, and so that a fuzzer can try.

/// A position: how many records were ever put (or taken), and how far that is in granules; both wrap. One word, so that
/// one store publishes both.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Position {
    pub(crate) count: u32,
    pub(crate) at: u32,
}

/// Records begin at multiples of this, so that their heads are one atomic word and never wrap round the end.
pub(crate) const GRANULE: usize = 8;

/// The most bytes a ring may have: half of what a position can tell apart.
pub(crate) const LARGEST: u64 = (1 << 31) * GRANULE as u64;

impl Position {
    #[inline]
    pub(crate) fn from_word(word: u64) -> Self {
        Position { count: (word >> 32) as u32, at: word as u32 }
    }

    #[inline]
    pub(crate) fn word(self) -> u64 {
        u64::from(self.count) << 32 | u64::from(self.at)
    }

    #[inline]
    pub(crate) fn after(self, records: u32, granules: u32) -> Self {
        Position { count: self.count.wrapping_add(records), at: self.at.wrapping_add(granules) }
    }
}

/// What lies between two positions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Content {
    pub(crate) records: u32,
    pub(crate) granules: u32,
}

/// What a ring of `size` granules holds, if that is possible.
#[inline]
pub(crate) fn between(head: Position, tail: Position, size: u32) -> Result<Content, &'static str> {
    let granules = tail.at.wrapping_sub(head.at);
    let records = tail.count.wrapping_sub(head.count);
    if granules > size {
        return Err("the ends are further apart than the ring is large");
    }
    if records > granules || (records == 0) != (granules == 0) {
        return Err("the number of records does not fit their bytes");
    }
    Ok(Content { records, granules })
}

/// How many granules a record takes; `None` if no ring has so many.
#[inline]
pub(crate) fn granules(len: usize) -> Option<u32> {
    let granules = 1 + len.div_ceil(GRANULE);
    u32::try_from(granules)
        .ok()
        .filter(|granules| u64::from(*granules) <= LARGEST / GRANULE as u64 && u32::try_from(len).is_ok())
}

/// The head of a record of `len` bytes, which `granules` has accepted.
#[inline]
pub(crate) fn head(len: usize) -> u64 {
    let len = len as u32;
    u64::from(!len) << 32 | u64::from(len)
}

/// The length of the record with that head, and how many granules it takes of the `content` it is the first of.
#[inline]
pub(crate) fn parse(head: u64, content: Content) -> Result<(usize, u32), &'static str> {
    let len = head as u32;
    if (head >> 32) as u32 != !len {
        return Err("no record begins where one should");
    }
    match granules(len as usize) {
        // Those behind it need a granule each at least.
        Some(granules)
            if content.granules.checked_sub(granules).is_some_and(|rest| rest >= content.records.saturating_sub(1)) =>
        {
            Ok((len as usize, granules))
        }
        _ => Err("a record reaches beyond what has been put"),
    }
}

/// For the fuzz target: walks through the records that two positions and the bytes of a ring claim, as a reader would.
/// Returns how many records make sense.
#[doc(hidden)]
pub fn walk(head: u64, tail: u64, ring: &[u8]) -> Result<u32, &'static str> {
    let size = ring.len() / GRANULE;
    if !size.is_power_of_two() || size > (LARGEST / GRANULE as u64) as usize {
        return Err("no ring has that size");
    }
    let tail = Position::from_word(tail);
    let mut head = Position::from_word(head);
    let mut records = 0;
    loop {
        let content = between(head, tail, size as u32)?;
        if content.records == 0 {
            return Ok(records);
        }
        let start = (head.at as usize & (size - 1)) * GRANULE;
        let word = ring[start..start + GRANULE].try_into().map_or(0, u64::from_ne_bytes);
        let (_, granules) = parse(word, content)?;
        head = head.after(1, granules);
        records += 1;
    }
}
