//! Answers on stdout: a table for people, JSON or YAML for programs.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{Cell, Color, Table, presets};
use serde::Serialize;

use crate::failure::{Failure, Outcome};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
    Yaml,
}

/// Shows `value` to programs, or its text form to people.
pub fn show<T: Serialize>(format: Format, value: &T, text: impl FnOnce(&T) -> String) -> Outcome {
    match format {
        Format::Table => line(&text(value)),
        Format::Json => line(&json(value)),
        Format::Yaml => {
            let yaml = serde_yaml_ng::to_string(value).map_err(|error| Failure::local("cannot write YAML", error))?;
            write(yaml.as_bytes())
        }
    }
}

pub fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("our views have string keys and finite numbers")
}

pub fn line(text: &str) -> Outcome {
    write(format!("{text}\n").as_bytes())
}

pub fn write(bytes: &[u8]) -> Outcome {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::OutputClosed),
        Err(error) => Err(Failure::local("cannot write to stdout", error)),
    }
}

/// Remarks that are not the answer.
pub fn note(text: &str) {
    eprintln!("{text}");
}

pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [Cell; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.map(|title| Cell::new(title.to_uppercase())));
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) || !io::stdout().is_terminal() {
        table.force_no_tty();
    }
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt()
}

pub fn cell(value: impl ToString) -> Cell {
    Cell::new(value.to_string())
}

/// A value that is right or wrong.
pub fn judged(value: impl ToString, right: bool) -> Cell {
    cell(value).fg(if right { Color::Green } else { Color::Red })
}

/// A count that should be zero.
pub fn trouble(count: i32) -> Cell {
    if count == 0 { cell(count) } else { judged(count, false) }
}

pub fn optional<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

pub fn list(ids: &[i32]) -> String {
    let ids: Vec<String> = ids.iter().map(i32::to_string).collect();
    format!("[{}]", ids.join(","))
}
