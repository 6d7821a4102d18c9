use super::*;
use crate::diag::{SourceFile, Sources};
use crate::exchange::tests::exchange;
use crate::identity::{Identity, Proof};
use crate::manifest::{decode::decode, node};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;

/// Checks an expression that stands plain in a file; `column code message [help]` of each fault.
fn checked(text: &str, place: Place) -> (Option<Expression>, Vec<String>) {
    let mut out = Diagnostics::new();
    let mut sources = Sources::default();
    let file = sources.add(SourceFile::new("m", format!("{text:?}")));
    let tree = node::parse(file, sources.get(file).unwrap(), &mut out).unwrap();
    let text: Spanned<String> = decode(&tree, &mut out).unwrap();
    let expression = Expression::check(&text, place, &mut out);
    out.sort();
    let faults = out.iter().map(|fault| {
        let help = fault.help.as_ref().map(|help| format!(" [{help}]")).unwrap_or_default();
        let place = sources.place(fault.span.unwrap());
        format!("{} {} {}{help}", place.rsplit(':').next().unwrap(), fault.code, fault.message)
    });
    (expression, faults.collect())
}

fn sound(text: &str, place: Place) -> Expression {
    let (expression, faults) = checked(text, place);
    assert_eq!(faults, Vec::<String>::new(), "{text}");
    expression.unwrap()
}

fn faults(text: &str) -> Vec<String> {
    checked(text, Place::Condition).1
}

fn caller() -> Identity {
    Identity {
        user_id: "u1".into(),
        tenant_id: "t1".into(),
        role: "admin".into(),
        scopes: vec!["chat:read".into(), "chat:write".into()],
        channel: None,
        openid: None,
        token_id: None,
        issued_at: None,
        expires_at: None,
        proof: Proof::Token,
    }
}

/// What an expression gives for a request of an admin's.
fn given(text: &str, place: Place, body: &Value) -> Result<Value, Failed> {
    let exchange = exchange(Method::POST, "/api/v1/chat");
    exchange.identified(Arc::new(caller()));
    let mut headers = HeaderMap::new();
    for (name, value) in [("x-a", "one"), ("x-b", "1"), ("x-b", "2"), ("x-user-role", "root")] {
        headers.append(name, value.parse().unwrap());
    }
    let answer = HeaderMap::new();
    let scope = Scope {
        exchange: &exchange,
        headers: &headers,
        query: Some("q=a%20b&token=secret&empty="),
        body: Some(body),
        response: Some((StatusCode::CREATED, &answer)),
    };
    sound(text, place).value(&scope)
}

fn gives(text: &str) -> Result<Value, Failed> {
    let body = json!({
        "n": 3, "x": 1.5, "big": u64::MAX, "text": "Hello", "none": null, "on": true,
        "list": [1, 2, 3], "rows": [{ "k": "a" }, { "k": "b" }], "object": { "a": { "b": [10, 20] } },
    });
    given(text, Place::Response, &body)
}

#[test]
fn expressions_see_the_request() {
    for text in [
        "request.method == 'POST'",
        "request.path.startsWith('/api/')",
        "request.headers['X-A'] == 'one' && request.headers['x-b'] == '1, 2'",
        "has(request.headers.nothing) == false && !('x-user-role' in request.headers)",
        "request.query.q == 'a b' && request.query['empty'] == '' && !('token' in request.query)",
        "request.ip == '127.0.0.1' && !request.secure",
        "claims.role == 'admin' && claims.user_id == 'u1' && has(claims.role)",
        "'chat:read' in claims.scopes && claims.scopes.exists(s, s.endsWith(':write'))",
        "!has(claims.channel)",
        "claims.role in ['admin', 'owner']",
        "response.status == 201",
        "request.path.matches('^/api/v[0-9]+/') && !matches(request.method, '^G')",
    ] {
        assert_eq!(gives(text), Ok(json!(true)), "{text}");
    }
}

#[test]
fn expressions_see_the_body() {
    for (text, wanted) in [
        ("body.n + 4", json!(7)),
        ("body.object.a.b[1]", json!(20)),
        ("body.object", json!({ "a": { "b": [10, 20] } })),
        ("body.rows.map(row, row.k)", json!(["a", "b"])),
        ("body.rows.filter(row, row.k != 'a')", json!([{ "k": "b" }])),
        ("body.list.exists_one(item, item > 2)", json!(true)),
        ("body.list.all(item, item > 2)", json!(false)),
        ("size(body.list) + body.text.size()", json!(8)),
        ("2 in body.list", json!(true)),
        ("'a' in body.object", json!(true)),
        ("body.object.map(name, name)", json!(["a"])),
        ("body.none == null", json!(true)),
        ("body.text.lowerAscii() + '!'", json!("hello!")),
        ("string(body.n) + string(body.x) + string(body.on)", json!("31.5true")),
        ("int('42') + int(1.9)", json!(43)),
        ("double(body.n) * 2.0", json!(6.0)),
        ("{'a': body.n, 'b': [body.text, null]}", json!({ "a": 3, "b": ["Hello", null] })),
        ("has(body.missing) ? body.missing : 'none'", json!("none")),
        ("body.big == 18446744073709551615u", json!(true)),
        ("body.list.map(i, body.rows.map(r, r.k + string(i)))[2]", json!(["a3", "b3"])),
        ("body.list + [4]", json!([1, 2, 3, 4])),
        ("'über' + body.text", json!("überHello")),
    ] {
        // A view of the body takes no `+` of its own.
        let wanted = if text == "body.list + [4]" { None } else { Some(wanted) };
        assert_eq!(gives(text).ok(), wanted, "{text}");
    }
}

#[test]
fn what_cannot_be_evaluated_says_so_without_values() {
    for (text, wanted) in [
        ("body.missing.deeper", "there is no `missing`"),
        ("claims.channel", "there is no `channel`"),
        ("body.list[7]", "a list is shorter than its index"),
        ("body.n / (body.n - 3)", "it divides by zero"),
        ("body.big + 1u", "a number grows too large"),
        ("9223372036854775807 + body.n", "a number grows too large"),
        ("-(-9223372036854775807 - 1)", "a number grows too large"),
        ("body.text + 1", "found no matching overload for '_+_' applied to '(string, int)'"),
        ("body.text.map(c, c)", "string stands where iterable is needed"),
        ("int(body.text)", "a text that is no such number stands where int is needed"),
        ("1.0 / 0.0", "JSON has no such number"),
    ] {
        assert_eq!(gives(text).unwrap_err().to_string(), wanted, "{text}");
    }
    let neither = sound("request.headers['x-a'] == 'b' ? true : has(claims.role)", Place::Condition);
    let exchange = exchange(Method::GET, "/");
    let scope =
        Scope { exchange: &exchange, headers: &HeaderMap::new(), query: None, body: None, response: None };
    assert_eq!(neither.holds(&scope), Err(Failed::Missing("x-a".into())), "strangers have no claims either");
    assert_eq!(sound("has(claims.role)", Place::Condition).holds(&scope), Ok(false));
    assert_eq!(
        sound("claims.role != 'admin'", Place::Condition).holds(&scope),
        Err(Failed::Missing("role".into()))
    );
}

#[test]
fn faults_stand_where_they_are() {
    for (text, wanted) in [
        ("clams.role == 'a'", "2 VG091 variable `clams` is not known here [did you mean `claims`?]"),
        ("claims.rol == 'a'", "9 VG091 `claims` has no `rol` [did you mean `role`?]"),
        ("'ü' == claims.rol", "16 VG091 `claims` has no `rol` [did you mean `role`?]"),
        (
            "body.x == 'a'",
            "2 VG091 variable `body` is not known here [conditions are decided before the body comes: go by `request`, `route` or `claims`]",
        ),
        (
            "request.path",
            "1 VG092 a condition is true or false, and this is a text [compare it with something: `==`, `!=`, `in`, `has(…)`]",
        ),
        (
            "1 == 1",
            "1 VG092 this condition is the same for every request [use `route`, `request` or `claims` in it, or remove the stage or its `when`]",
        ),
        ("request.path == 1", "15 VG092 a text never equals a whole number"),
        ("request.secure && request.path", "28 VG092 true or false is needed here, and this is a text"),
        ("!request.path", "11 VG092 true or false is needed here, and this is a text"),
        (
            "request.path > 5",
            "15 VG092 `>` does not take a text and a whole number [convert one: `string(…)`, `int(…)`, `double(…)`]",
        ),
        (
            "request.path + 1 == 'a'",
            "15 VG092 `+` does not take a text and a whole number [convert one: `string(…)`, `int(…)`, `double(…)`]",
        ),
        (
            "claims.scopes == ['a']",
            "16 VG092 lists and objects are not compared [compare their fields, or ask with `in`, `exists` or `size`]",
        ),
        ("1 in claims.scopes", "4 VG092 a whole number is never in it: it holds texts"),
        (
            "'a' in request.path",
            "6 VG092 a text holds nothing [`in` asks a list for an item, or an object for a name]",
        ),
        (
            "request.path.startWith('/')",
            "15 VG091 function `startWith` is not known [did you mean `startsWith`?]",
        ),
        ("request.path.startsWith(1)", "26 VG092 `startsWith` does not take a whole number"),
        ("request.path.contains()", "15 VG092 `contains` takes one argument here, not 0"),
        (
            "has(claims)",
            "6 VG090 this is not an expression: invalid argument to has() macro [`has` takes a field, as in `has(claims.channel)`; for a header write `'x-name' in request.headers`]",
        ),
        (
            "claims.scopes.exists('s', true)",
            "23 VG090 this is not an expression: argument must be a simple name [write it in CEL, such as `claims.role == 'admin' && request.path.startsWith('/x')`]",
        ),
        (
            "request.headers['X-User-ID'] == 'a'",
            "18 VG091 header `X-User-ID` is the caller's own word [go by `claims`, `request.ip` or `request.secure`, which the gateway itself found out]",
        ),
        (
            "request.headers.x_forwarded_for == 'a'",
            "18 VG091 header `x_forwarded_for` is the caller's own word [go by `claims`, `request.ip` or `request.secure`, which the gateway itself found out]",
        ),
        (
            "request.path.matches(request.method)",
            "31 VG093 the pattern of `matches` is not a literal [write it out in quotes: only then can it be compiled once]",
        ),
        (
            "request.path.matches('(')",
            "23 VG090 this is not a pattern [syntax: https://docs.rs/regex (RE2, without look-around and back-references)]",
        ),
        (
            "request.path.matches('((a{1000}){1000}){10}')",
            "23 VG093 this pattern is too large [use smaller counts]",
        ),
        ("request.headers.exists(h, true)", "10 VG092 an object has no items to go through"),
        ("b'a' == b'a'", "2 VG092 bytes have no use here [write a text: 'abc']"),
    ] {
        let found = faults(text);
        assert_eq!(found.first().map(String::as_str), Some(wanted), "{text}: {found:#?}");
    }
}

#[test]
fn every_fault_is_reported() {
    assert_eq!(faults("claims.rol == 'a' && requst.path == 'b' || request.path == 1").len(), 3);
}

#[test]
fn what_is_no_expression_points_at_the_place() {
    for text in
        ["claims.role ==", "claims.role = 'a'", "(", "a b", "claims..role", "'", "", "claims.role == \"a"]
    {
        let (_, found) = checked(text, Place::Condition);
        assert!(!found.is_empty() && found[0].contains("VG090"), "{text}: {found:?}");
    }
    assert_eq!(
        faults("claims.role = 'a'"),
        [
            "14 VG090 this is not an expression: token recognition error at: '= ' [write it in CEL, such as `claims.role == 'admin' && request.path.startsWith('/x')`]"
        ]
    );
}

#[test]
fn size_depth_and_nesting_are_bounded() {
    let long = format!("request.path == '{}'", "x".repeat(MAX_TEXT));
    assert!(faults(&long)[0].contains("VG093"), "{:?}", faults(&long));
    let wide = vec!["request.path == 'a'"; 81].join("||");
    assert!(faults(&wide)[0].contains("more than 400 parts"), "{:?}", faults(&wide));
    for (open, middle, close) in
        [("(", "request.secure", ")"), ("[", "1", "]"), ("{'a':", "1", "}"), ("!(", "request.secure", ")")]
    {
        let deep =
            |levels: usize| faults(&format!("{}{middle}{}", open.repeat(levels), close.repeat(levels)));
        assert!(deep(250)[0].contains("VG093 this expression has more than 200 brackets"), "{:?}", deep(250));
        // The parser bears what it is given.
        let _ = deep(200);
    }
    let lists = faults(&format!("1 in {}1{}", "[".repeat(60), "]".repeat(60)));
    assert!(lists[0].contains("VG093 this expression nests too deep"), "{lists:?}");
    for chain in [
        "request.path + 'a'".to_owned() + &" + 'b'".repeat(60),
        "-".repeat(99) + "1",
        "request.path".to_owned() + &".trim()".repeat(60),
    ] {
        let chain = format!("{chain} == 'a'");
        assert!(faults(&chain).iter().any(|fault| fault.contains("VG0")), "{chain}");
    }
    let nested = "claims.scopes.all(a, claims.scopes.all(b, claims.scopes.all(c, a == b)))";
    assert!(faults(nested)[0].contains("VG093 macros stand too deep"), "{:?}", faults(nested));
    assert_eq!(faults("claims.scopes.all(a, claims.scopes.all(b, a == b))"), Vec::<String>::new());
}

/// The deepest expression that passes runs on the smallest stack there is.
#[test]
fn the_deepest_expression_fits_the_stack() {
    let chain = "request.path".to_owned() + &".trim()".repeat(20);
    let chain = chain + &" + 'b'".repeat(20) + " != ''";
    assert_eq!(given(&chain, Place::Condition, &Value::Null), Ok(json!(true)));
    let chain = "1".to_owned() + &" + 1".repeat(40) + " == 41 && request.path != ''";
    assert_eq!(given(&chain, Place::Condition, &Value::Null), Ok(json!(true)));
}

#[test]
fn no_body_makes_an_expression_expensive() {
    let long = "x".repeat(1 << 20);
    let body = json!({ "list": vec![0; 100_000], "text": long, "texts": vec!["aaaa"; 5_000] });
    for text in [
        "body.list.map(a, body.list.map(b, a))",
        "body.list.exists(a, a == 1)",
        "[body.text].exists(t, body.texts.exists(x, t.contains(x)))",
        "[body.text].exists(t, body.texts.exists(x, t == x + 'a'))",
        "[body.text].map(t, body.texts.map(x, t + x))",
        "body.texts.map(x, body.text)",
        "body.text + body.text + body.text + body.text + body.text + body.text + body.text + body.text + body.text + body.text",
        "[body.text].exists(t, body.texts.exists(x, t.matches('y$')))",
        "[body.list].exists(l, body.texts.exists(x, 5 in l))",
        "body.texts.exists(x, 5 in body.list) || true",
    ] {
        let began = std::time::Instant::now();
        assert_eq!(given(text, Place::Request, &body), Err(Failed::TooCostly), "{text}");
        assert!(began.elapsed() < std::time::Duration::from_secs(2), "{text}: {:?}", began.elapsed());
    }
    assert_eq!(given("body.text.contains('y')", Place::Request, &body), Ok(json!(false)));
    assert_eq!(given("size(body.list)", Place::Request, &body), Ok(json!(100_000)));
}

#[test]
fn what_is_used_is_known() {
    let uses = |text: &str| sound(text, Place::Condition).uses();
    assert_eq!(uses("claims.role == 'a'"), Uses { claims: true, ..Uses::default() });
    assert_eq!(uses("'x-a' in request.headers"), Uses { headers: true, ..Uses::default() });
    assert_eq!(uses("request.query.a == 'b'"), Uses { query: true, live: true, ..Uses::default() });
    assert!(uses("claims.user_id == 'a'").live && !uses("request.path == '/'").live);
}
