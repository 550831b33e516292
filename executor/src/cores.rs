//! How many cores there are to work on, which both pools go by: for the number of their workers, and for whether looking
//! again beats sleeping.

/// How many cores this process may use now, by its affinity and its limits; 1 if the system doesn't tell. It asks the
/// system each time, which takes microseconds.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
