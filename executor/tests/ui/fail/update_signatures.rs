#[polypool::update]
fn nothing() {}

#[polypool::update]
fn by_value(count: u64, n: u64) -> u64 {
    count + n
}

#[polypool::update]
fn shared(count: &u64) -> u64 {
    *count
}

#[polypool::update]
async fn later(count: &mut u64) {
    *count = 0;
}

#[polypool::update]
fn borrows(count: &mut u64, name: &str) {
    *count = name.len() as u64;
}

#[polypool::update]
fn generic<T>(value: &mut T, new: T) {
    *value = new;
}

fn main() {}
