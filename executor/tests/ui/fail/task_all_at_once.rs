//! Everything that is wrong is said at once.

#[polypool::task(name = "")]
unsafe fn resize<T>((width, height): (u32, u32), filter: &str, _: *const T) -> impl Iterator<Item = u8>
where
    T: Clone,
{
    let _ = (width, height, filter);
    std::iter::empty()
}

fn main() {}
