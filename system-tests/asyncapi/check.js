// Parses an AsyncAPI document with the AsyncAPI project's own parser. Exit code 1 on any diagnostic of severity error.
'use strict';

const { readFile } = require('node:fs/promises');
const { Parser, DiagnosticSeverity } = require('@asyncapi/parser');
const { AvroSchemaParser } = require('@asyncapi/avro-schema-parser');

async function check(file) {
  const parser = new Parser();
  parser.registerSchemaParser(AvroSchemaParser()); // Millrace's payloads are Avro
  const { document, diagnostics } = await parser.parse(await readFile(file, 'utf8'), { source: file });

  for (const { severity, code, message, path, range } of diagnostics) {
    const place = `${file}:${range.start.line + 1} ${path.join('.')}`;
    console.error(`${DiagnosticSeverity[severity].toLowerCase()} ${code}: ${message} (${place})`);
  }
  const errors = diagnostics.filter(({ severity }) => severity === DiagnosticSeverity.Error);
  if (errors.length > 0 || document === undefined) {
    console.error(`${file}: ${errors.length} errors`);
    return 1;
  }
  const { length: channels } = document.allChannels().all();
  const { length: operations } = document.allOperations().all();
  const { length: messages } = document.allMessages().all();
  console.log(`${file}: AsyncAPI ${document.version()}, ${channels} channels, ${operations} operations, ${messages} messages`);
  return 0;
}

if (process.argv.length !== 3) {
  console.error('usage: check FILE');
  process.exit(2);
}
check(process.argv[2]).then(
  (code) => process.exit(code),
  (error) => {
    console.error(`${process.argv[2]}: ${error.message}`);
    process.exit(1);
  },
);
