use super::super::testing::{answering, check, code, fed, request, send, target};
use super::*;
use http::Method;
use std::time::Instant;

#[test]
#[ignore = "measures"]
fn speed() {
    let n = 1 << 20;
    let list: Vec<(&str, String)> = vec![
        ("a", "a".repeat(n)),
        ("quote", "'".repeat(n)),
        ("lt", "<".repeat(n)),
        ("tags", "<a ".repeat(n / 3)),
        ("b", "<b>".repeat(n / 3)),
        ("div", "<div>".repeat(n / 5)),
        ("svg", "<svg><style><a title=\"".repeat(n / 22)),
        ("attr", format!("<a {}", "a=b ".repeat(n / 4))),
        ("words", "select * from a ".repeat(n / 16)),
        ("paren", "(".repeat(n)),
        ("comment", "/*".repeat(n / 2)),
        ("comment2", "<!--".repeat(n / 4)),
        ("comment3", "--".repeat(n / 2)),
        ("ent", "&#x41;".repeat(n / 6)),
        ("brace", "{`".repeat(n / 2)),
        ("dollar", "$a$".repeat(n / 3)),
        ("at", "@a".repeat(n / 2)),
        ("q", "q'(".repeat(n / 3)),
        ("plus", "1+".repeat(n / 2)),
        ("dot", "a.b".repeat(n / 3)),
        ("bs", "'\\".repeat(n / 2)),
        ("ju", "<a href=\"java".repeat(n / 13)),
        ("z", "a\0".repeat(n / 2)),
    ];
    for (name, text) in list {
        for size in [1usize << 12, 1 << 16, n] {
            let text: String = text.chars().take(size).collect();
            let t = Instant::now();
            let x = libinjectionrs::detect_xss(text.as_bytes()).is_injection();
            let tx = t.elapsed();
            let t = Instant::now();
            let s = libinjectionrs::detect_sqli(text.as_bytes()).is_injection();
            let ts = t.elapsed();
            let t = Instant::now();
            if size <= 1 << 16 { let _ = ammonia::clean(&text).len(); }
            let tc = t.elapsed();
            println!("{name:10} {size:8} xss {x} {tx:?} sql {s} {ts:?} clean {tc:?}");
        }
    }
}
