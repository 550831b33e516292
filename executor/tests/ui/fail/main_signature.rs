#[polypool::main]
unsafe fn main<T>(arguments: Vec<String>, more: T)
where
    T: Clone,
{
}
