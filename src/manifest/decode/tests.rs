use super::super::{List, Spanned, Table};
use super::*;
use crate::diag::SourceFile;
use crate::manifest::node;
use crate::units::Dur;

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Top {
    #[serde(default)]
    items: List<Item>,
    #[serde(default)]
    named: Table<Item>,
    wait: Option<Dur>,
    pick: Option<Pick>,
    port: Option<Spanned<u16>>,
    raw: Option<Node>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    name: Spanned<String>,
    #[serde(default)]
    weight: u32,
}

#[derive(Debug, PartialEq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Pick {
    First,
    Hash(String),
}

fn read(text: &str) -> (Option<Top>, Vec<String>) {
    let mut out = Diagnostics::new();
    let mut sources = crate::diag::Sources::default();
    let file = sources.add(SourceFile::new("m", text));
    let mut tree = node::parse(file, sources.get(file).unwrap(), &mut out).unwrap();
    let lookup = |name: &str| (name == "PORT").then(|| "8080".to_owned()).or(Some("s3cret".into()));
    crate::manifest::env::expand(&mut tree, &lookup, &mut Default::default(), &mut out);
    let top = decode(&tree, &mut out);
    out.sort();
    let lines =
        out.iter().map(|d| format!("{} {} {}", sources.place(d.span.unwrap()), d.code, d.message)).collect();
    (top, lines)
}

#[test]
fn a_good_document() {
    let (top, faults) = read(
        "items: [{name: a}, {name: b, weight: 2}]\nnamed: {x: {name: c}}\nwait: 30s\npick: {hash: user}\nport: 80\nraw: [1]\n",
    );
    assert_eq!(faults, Vec::<String>::new());
    let top = top.unwrap();
    assert_eq!(top.items.0[1].weight, 2);
    assert_eq!(top.items.0[0].name.span.start, 15);
    assert_eq!(top.named.get("x").unwrap().name.value, "c");
    assert_eq!(top.pick, Some(Pick::Hash("user".into())));
    assert_eq!(top.wait, Some(Dur::secs(30)));
    assert_eq!(top.raw.unwrap().kind(), "a list");
}

#[test]
fn one_run_reports_every_fault() {
    let text = "\
items:
  - { name: a, wieght: 2, weight: x }
  - { weight: 1 }
  - 7
  - { name: fine }
named: { x: { name: [1] } }
wait: 30
pick: frist
port: 70000
colour: red
";
    let (top, faults) = read(text);
    assert_eq!(
        faults,
        [
            "m:2:16 VG010 key `wieght` is not known here",
            "m:2:35 VG011 expected a whole number, not negative, found a text",
            "m:3:5 VG012 key `name` is missing",
            "m:4:5 VG011 expected a mapping, found a number",
            "m:6:21 VG011 expected a text, found a list",
            "m:7:7 VG011 expected a duration with its unit, such as `500ms`, `30s`, `5m`, `24h` or `7d`, found a number",
            "m:8:7 VG011 `frist` is not one of the choices here",
            "m:9:7 VG011 expected a whole number, not negative",
            "m:10:1 VG010 key `colour` is not known here",
        ]
    );
    let top = top.unwrap();
    assert_eq!(top.items.0.len(), 2, "the first item lost only its faulty optional key");
    assert_eq!(top.items.0[1].name.value, "fine");
}

#[test]
fn variables_become_numbers_and_are_never_shown() {
    let (top, faults) = read("port: ${PORT}\n");
    assert_eq!((top.unwrap().port.unwrap().value, faults.len()), (8080, 0));
    let (_, faults) = read("port: ${SECRET}\npick: ${SECRET}\nwait: ${SECRET}\n");
    assert_eq!(faults.len(), 3);
    assert!(faults.iter().all(|f| !f.contains("s3cret")), "{faults:?}");
}
