//! The half of a wrapper of a connection that writes: all of it goes to the connection as it is.

/// Has what is written to `$wrapper` go to its `io`. With `$wrote`, that method of the wrapper gets
/// the outcome of each write.
macro_rules! writes_through {
    ($wrapper:ident $(, $wrote:ident)?) => {
        impl<IO: ::tokio::io::AsyncWrite + Unpin> ::tokio::io::AsyncWrite for $wrapper<IO> {
            fn poll_write(
                mut self: ::std::pin::Pin<&mut Self>,
                cx: &mut ::std::task::Context<'_>,
                buf: &[u8],
            ) -> ::std::task::Poll<::std::io::Result<usize>> {
                let outcome = ::std::pin::Pin::new(&mut self.io).poll_write(cx, buf);
                $(self.$wrote(&outcome);)?
                outcome
            }

            fn poll_write_vectored(
                mut self: ::std::pin::Pin<&mut Self>,
                cx: &mut ::std::task::Context<'_>,
                bufs: &[::std::io::IoSlice<'_>],
            ) -> ::std::task::Poll<::std::io::Result<usize>> {
                let outcome = ::std::pin::Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
                $(self.$wrote(&outcome);)?
                outcome
            }

            fn is_write_vectored(&self) -> bool {
                self.io.is_write_vectored()
            }

            fn poll_flush(
                mut self: ::std::pin::Pin<&mut Self>,
                cx: &mut ::std::task::Context<'_>,
            ) -> ::std::task::Poll<::std::io::Result<()>> {
                ::std::pin::Pin::new(&mut self.io).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: ::std::pin::Pin<&mut Self>,
                cx: &mut ::std::task::Context<'_>,
            ) -> ::std::task::Poll<::std::io::Result<()>> {
                ::std::pin::Pin::new(&mut self.io).poll_shutdown(cx)
            }
        }
    };
}

pub(crate) use writes_through;
