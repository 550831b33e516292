#[polypool::task]
fn argument(text: impl ToString, texts: Vec<impl Into<String>>) -> String {
    let _ = texts.len();
    text.to_string()
}

#[polypool::task]
fn result(n: u8) -> impl ToString {
    n
}

#[polypool::task]
fn future(n: u8) -> impl Future<Output = u8> {
    async move { n }
}

fn main() {}
