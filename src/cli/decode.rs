//! `decode`: what stands in captured bytes, in words or as JSON.
//!
//! Bytes are hex text, read as one stream, or a dump: the JSON of `/admin/recorder`, `/admin/anomalies` or one of its entries, with
//! or without the envelope. Of a dump each frame is explained for itself, with the time and the direction it says.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use chargegate::protocol::ap3000::Magics;
use chargegate::protocol::explain::{Finding, findings};
use chargegate::protocol::{Direction, Hex};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{ConfigFile, EXIT_USAGE, print};
use dump::Dump;

mod dump;

#[derive(Args, Debug)]
pub(super) struct Decode {
    #[command(flatten)]
    file: ConfigFile,
    /// Print one JSON object per item and line
    #[arg(long)]
    json: bool,
    /// File with hex text, or with the JSON that /admin/recorder or /admin/anomalies answers; "-" for standard input
    #[arg(long = "file", value_name = "PATH", required_unless_present = "hex", conflicts_with = "hex")]
    path: Option<PathBuf>,
    /// First bytes of AP3000 frames, may be repeated [default: ap3000.magics of the configuration]
    #[arg(long, value_name = "HEX")]
    magic: Vec<String>,
    /// Who sent the AP3000 frames, whose bytes do not say [default: guessed for each]
    #[arg(long)]
    direction: Option<Sender>,
    /// Bytes in hex; spaces, commas, colons, line breaks and 0x may stand between them
    hex: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sender {
    /// The device
    Up,
    /// The server
    Down,
}

impl From<Sender> for Direction {
    fn from(sender: Sender) -> Self {
        match sender {
            Sender::Up => Self::Up,
            Sender::Down => Self::Down,
        }
    }
}

impl Decode {
    pub(super) fn run(self) -> ExitCode {
        let usage = |error: &dyn std::fmt::Display| {
            eprintln!("error: {error}");
            ExitCode::from(EXIT_USAGE)
        };
        let magics = match self.magics() {
            Ok(magics) => magics,
            Err(code) => return code,
        };
        let text = match &self.path {
            None => self.hex.join(" "),
            Some(path) => match read(path) {
                Ok(text) => text,
                Err(error) => return usage(&format_args!("cannot read {}: {error}", path.display())),
            },
        };
        if self.path.is_some() && Dump::is_one(&text) {
            return match Dump::read(&text) {
                Ok(dump) => self.show_dump(&dump, &magics),
                Err(error) => usage(&error),
            };
        }
        let bytes = match parse(&text) {
            Ok(bytes) => bytes,
            Err(error) => return usage(&error),
        };
        let mut findings = findings(&bytes, &magics, self.direction.map(Direction::from)).enumerate();
        print(|out| {
            findings.try_for_each(|(index, finding)| {
                if self.json {
                    serde_json::to_writer(&mut *out, &finding)?;
                    return writeln!(out);
                }
                let gap = if index == 0 { "" } else { "\n" };
                write!(out, "{gap}{finding}")
            })
        })
    }

    fn show_dump(&self, dump: &Dump, magics: &Magics) -> ExitCode {
        print(|out| {
            for (index, frame) in dump.frames.iter().enumerate() {
                // The dump knows better than the option.
                let direction = frame.direction.or_else(|| self.direction.map(Direction::from));
                let mut findings = findings(&frame.raw, magics, direction);
                if self.json {
                    findings.try_for_each(|finding| {
                        serde_json::to_writer(&mut *out, &Dumped { recorded: frame, finding })?;
                        writeln!(out)
                    })?;
                    continue;
                }
                let gap = if index == 0 { "" } else { "\n" };
                writeln!(out, "{gap}{frame}\n  {}", Hex(&frame.raw))?;
                findings.try_for_each(|finding| {
                    finding.to_string().lines().try_for_each(|line| writeln!(out, "  {line}"))
                })?;
            }
            Ok(())
        })
    }

    fn magics(&self) -> Result<Magics, ExitCode> {
        let magics = if self.magic.is_empty() {
            Magics::new(&self.file.clone().load()?.ap3000.magics.0)
        } else {
            Magics::from_hex(&self.magic)
        };
        magics.map_err(|error| {
            eprintln!("error: {error}");
            ExitCode::from(EXIT_USAGE)
        })
    }
}

/// One object of `--json` of a dump: what the dump says of a frame, and what stands in it.
#[derive(Serialize)]
struct Dumped<'a> {
    recorded: &'a dump::Frame,
    #[serde(flatten)]
    finding: Finding<'a>,
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        io::stdin().lock().read_to_end(&mut bytes)?;
    } else {
        bytes = fs::read(path)?;
    }
    // A byte that is no text is no hex digit either, and is refused as such.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Why a text is not hex. Lines and characters are counted from 1.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum HexError {
    #[error("line {line}, character {column}: {found:?} is not a hex digit")]
    NotHex { line: usize, column: usize, found: char },
    #[error("line {line}, character {column}: {found:?} is half a byte, its second hex digit is missing")]
    Half { line: usize, column: usize, found: char },
    #[error("no bytes given")]
    Empty,
}

/// Reads hex as people paste it. Two digits make a byte and stand together; `0x` and separators may precede each.
fn parse(text: &str) -> Result<Vec<u8>, HexError> {
    let mut bytes = Vec::with_capacity(text.len() / 2);
    for (line, content) in (1..).zip(text.lines()) {
        let mut half: Option<(usize, char, u32)> = None;
        let mut at_start = true;
        for (column, found) in (1..).zip(content.chars()) {
            let separates = found.is_whitespace() || matches!(found, ':' | ',');
            let prefix = at_start && matches!((found, half), ('x' | 'X', Some((_, '0', _))));
            match (found.to_digit(16), half.take()) {
                (Some(low), Some((_, _, high))) => {
                    bytes.extend(u8::try_from(high << 4 | low));
                    at_start = false;
                }
                (Some(high), None) => half = Some((column, found, high)),
                (None, _) if prefix => at_start = false,
                (None, Some((column, found, _))) if separates => return Err(HexError::Half { line, column, found }),
                (None, None) if separates => at_start = true,
                (None, _) => return Err(HexError::NotHex { line, column, found }),
            }
        }
        if let Some((column, found, _)) = half {
            return Err(HexError::Half { line, column, found });
        }
    }
    if bytes.is_empty() { Err(HexError::Empty) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_as_people_paste_it() {
        let bytes = [0x44, 0x4e, 0x59];
        for text in ["444e59", "44 4E 59", "44:4e:59", "0x44, 0x4e, 0X59", "0x444e59\r\n", "\n44\n 4e\t59\n", "44 4e59"]
        {
            assert_eq!(parse(text).as_deref(), Ok(&bytes[..]), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_hex_is_named_with_its_place() {
        let message = |text| parse(text).unwrap_err().to_string();
        assert_eq!(message("44 4g"), "line 1, character 5: 'g' is not a hex digit");
        assert_eq!(message("44\n4e 59 z"), "line 2, character 7: 'z' is not a hex digit");
        assert_eq!(message("44 4"), "line 1, character 4: '4' is half a byte, its second hex digit is missing");
        assert_eq!(message("444 e59"), "line 1, character 3: '4' is half a byte, its second hex digit is missing");
        assert_eq!(message("4\n4"), "line 1, character 1: '4' is half a byte, its second hex digit is missing");
        assert_eq!(message("440x44"), "line 1, character 4: 'x' is not a hex digit");
        assert_eq!(message("é"), "line 1, character 1: 'é' is not a hex digit");
        for text in ["", " \n", "0x"] {
            assert_eq!(message(text), "no bytes given", "{text:?}");
        }
    }
}
