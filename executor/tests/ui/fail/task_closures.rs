#[polypool::task]
fn boxed(f: Box<dyn Fn(&str) -> u8 + Send>) -> u8 {
    f("")
}

#[polypool::task]
fn generic(f: impl FnOnce() -> u8) -> u8 {
    f()
}

#[polypool::task]
fn pointer(f: fn(u8) -> u8) -> u8 {
    f(1)
}

#[polypool::task]
fn result(n: u8) -> Box<dyn Fn() -> u8> {
    Box::new(move || n)
}

fn main() {}
