//! A client of the Redis-speaking endpoint that asks for little: commands, pipelines, answers.

use std::io;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// An answer of the endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Null.
    Nothing,
    /// A status or a string.
    Text(String),
    /// An error: its code and what it says.
    Error(String),
    /// An integer.
    Number(i64),
    /// An array.
    Several(Vec<Answer>),
}

/// A client's connection.
#[derive(Debug)]
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Connects to the endpoint at `addr`.
    ///
    /// # Errors
    /// If nothing listens there.
    pub async fn open(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a command and reads its answer.
    ///
    /// # Errors
    /// If the connection ends before, or the answer is none.
    pub async fn ask(&mut self, words: &[impl AsRef<str>]) -> Result<Answer> {
        self.send(words).await?;
        self.read().await
    }

    /// Sends a command and does not wait for its answer.
    ///
    /// # Errors
    /// If the connection has ended.
    pub async fn send(&mut self, words: &[impl AsRef<str>]) -> io::Result<()> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            let word = word.as_ref();
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.0.get_mut().write_all(request.as_bytes()).await
    }

    /// Reads the next answer, or message.
    ///
    /// # Errors
    /// If the connection ends before, or it is none.
    pub async fn read(&mut self) -> Result<Answer> {
        let first = self.line().await?;
        let Some(count) = first.strip_prefix('*') else { return self.answer(&first).await };
        let Ok(count) = usize::try_from(count.parse::<i64>()?) else { return Ok(Answer::Nothing) };
        let mut answers = Vec::new();
        for _ in 0..count {
            let line = self.line().await?;
            answers.push(self.answer(&line).await?);
        }
        Ok(Answer::Several(answers))
    }

    async fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line).await? == 0 {
            bail!("the connection ended");
        }
        Ok(line.trim_end().to_owned())
    }

    async fn answer(&mut self, line: &str) -> Result<Answer> {
        let (kind, rest) = line.split_at_checked(1).context("an empty line")?;
        Ok(match kind {
            "+" => Answer::Text(rest.to_owned()),
            "-" => Answer::Error(rest.to_owned()),
            ":" => Answer::Number(rest.parse()?),
            "_" => Answer::Nothing,
            "$" | "*" => {
                let Ok(len) = usize::try_from(rest.parse::<i64>()?) else {
                    return Ok(Answer::Nothing);
                };
                if kind == "*" || len > ANSWER_BYTES_MAX {
                    bail!("an answer in no form that was asked for: {line}");
                }
                let mut bytes = vec![0; len + 2];
                self.0.read_exact(&mut bytes).await?;
                bytes.truncate(len);
                Answer::Text(String::from_utf8(bytes)?)
            }
            _ => bail!("an answer in no form that was asked for: {line}"),
        })
    }
}
