// A client of the Model Context Protocol by its TypeScript SDK, at the address that it is given.

const { Client } = require('@modelcontextprotocol/sdk/client/index.js');
const { StreamableHTTPClientTransport } = require('@modelcontextprotocol/sdk/client/streamableHttp.js');

async function main([url, words]) {
  const client = new Client({ name: 'tester', version: '1' });
  const transport = new StreamableHTTPClientTransport(new URL(url));
  await client.connect(transport);
  let answer;
  for (const word of words.split(' ')) {
    answer = await client.callTool({ name: 'note', arguments: { text: word } });
  }
  console.log(answer.content[0].text);
  await transport.terminateSession();
  await client.close();
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
