//! `voicegate routes`: the table as compiled.

use super::{ConfigArg, OK, print, sound};
use crate::compile::diff;
use clap::Args;

/// Arguments of `routes`.
#[derive(Debug, Args)]
pub(super) struct Routes {
    #[command(flatten)]
    config: ConfigArg,

    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &Routes) -> u8 {
    let checked = match sound(&command.config.config) {
        Ok(checked) => checked,
        Err(code) => return code,
    };
    let rows: Vec<[String; 5]> = checked
        .routes()
        .iter()
        .map(|route| {
            [
                route.info.method.clone(),
                format!("{}{}", route.info.host.as_deref().unwrap_or_default(), route.info.template),
                if route.needs_auth() { "auth".to_owned() } else { "public".to_owned() },
                diff::ending(route),
                route.links.iter().map(|link| link.name).collect::<Vec<_>>().join(" → "),
            ]
        })
        .collect();
    if command.json {
        let names = ["method", "path", "access", "target", "chain"];
        let objects: Vec<serde_json::Value> = rows
            .iter()
            .map(|row| names.iter().zip(row).map(|(n, v)| ((*n).to_owned(), v.clone().into())).collect())
            .map(serde_json::Value::Object)
            .collect();
        print(&format!("{:#}\n", serde_json::Value::Array(objects)));
        return OK;
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let (method, path, access, target) = (width(0), width(1), width(2), width(3));
    for [m, p, a, t, chain] in &rows {
        print(&format!("{m:method$}  {p:path$}  {a:access$}  {t:target$}  {chain}\n"));
    }
    OK
}
