"""Talks to a running server with the unmodified `openai` client, as its users do.

    python openai_client.py http://127.0.0.1:8712/v1 [API_KEY]

Needs only the package `openai`. Says nothing about what the model knows: every check is about the protocol, so any
model will do. Ends with status 0 when all checks hold, else with 1 and one line for each that does not.
"""

import json
import math
import sys
import time
import traceback
import typing
import urllib.error
import urllib.request

import openai

CHECKS = []
QUESTION = [{"role": "user", "content": "Name a fruit."}]


def check(function):
    CHECKS.append(function)
    return function


def text_of(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def refused(call, kind, param=None):
    """The error `call` ends with; fails when it is another one."""
    try:
        call()
    except kind as error:
        assert error.body and error.body["message"], error
        if param is not None:
            assert error.body["param"] == param, f"param is {error.body['param']!r}, not {param!r}"
        return error
    raise AssertionError(f"no {kind.__name__}")


@check
def models_are_listed_and_found(client, model):
    assert client.models.retrieve(model).id == model
    refused(lambda: client.models.retrieve("no-such-model"), openai.NotFoundError)


@check
def a_chat_is_answered(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=16, temperature=0)
    assert answer.object == "chat.completion" and answer.model == model and answer.id.startswith("chatcmpl-")
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content, choice
    assert choice.finish_reason in ("stop", "length"), choice.finish_reason
    usage = answer.usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 16, usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    assert 0 <= usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens, usage


@check
def a_stream_says_the_same_as_a_whole_answer(client, model):
    settings = dict(model=model, messages=QUESTION, max_tokens=24, temperature=0)
    # Twice, so that both read the prompt from the same cache.
    client.chat.completions.create(**settings)
    whole = client.chat.completions.create(**settings)
    stream = client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    assert len({chunk.id for chunk in chunks}) == 1
    assert text_of(chunks) == whole.choices[0].message.content, (text_of(chunks), whole.choices[0].message.content)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == whole.choices[0].finish_reason and not any(reasons[:-1]), reasons
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


@check
def a_seed_repeats_and_answers_of_one_request_differ_in_number_only(client, model):
    def ask(seed):
        return client.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=12, temperature=1.0, top_p=0.9, seed=seed, n=2
        )

    # The first reads the prompt afresh; the others find it in the cache.
    ask(5)
    one, two = ask(5), ask(5)
    assert [choice.index for choice in one.choices] == [0, 1]
    assert [c.message.content for c in one.choices] == [c.message.content for c in two.choices], (one, two)
    assert one.system_fingerprint and one.system_fingerprint == two.system_fingerprint


@check
def limits_and_stops_are_kept(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_completion_tokens=1, temperature=0)
    assert answer.usage.completion_tokens == 1, answer.usage
    settings = dict(model=model, prompt="One, two, three, four,", max_tokens=24, temperature=0)
    free = client.completions.create(**settings).choices[0].text
    assert free.strip(), "nothing to stop at"
    # A stop string from the middle of what the model says.
    stop = free[len(free) // 2 :][:3]
    stopped = client.completions.create(**settings, stop=[stop]).choices[0]
    assert stop not in stopped.text and free.startswith(stopped.text), (free, stop, stopped)
    assert stopped.finish_reason == "stop", stopped
    streamed = "".join(
        chunk.choices[0].text for chunk in client.completions.create(**settings, stop=stop, stream=True)
    )
    assert streamed == stopped.text, (streamed, stopped.text)


@check
def logprobs_are_probabilities(client, model):
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    tokens = answer.choices[0].logprobs.content
    assert tokens, answer
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3, token
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.001, token
        # At temperature 0 the token is the likeliest one.
        assert abs(token.top_logprobs[0].logprob - token.logprob) < 1e-3, token
    text = b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace")
    content = answer.choices[0].message.content
    assert text.startswith(content) or content.startswith(text), (text, content)


@check
def a_bias_forbids_a_token(client, model):
    settings = dict(model=model, prompt="The sky is", max_tokens=1, temperature=0, logprobs=1)
    first = client.completions.create(**settings).choices[0].logprobs.tokens[0]
    origin = str(client.base_url).rstrip("/").removesuffix("/v1")
    ids = post(client, f"{origin}/tokenize", {"content": first})["tokens"]
    biased = client.completions.create(**settings, logit_bias={str(token): -100 for token in ids})
    assert biased.choices[0].logprobs.tokens[0] != first, first


@check
def completions_take_texts_and_tokens(client, model):
    origin = str(client.base_url).rstrip("/").removesuffix("/v1")
    prompt = "Once upon a time"
    tokens = post(client, f"{origin}/tokenize", {"content": prompt})["tokens"]
    assert post(client, f"{origin}/detokenize", {"tokens": tokens})["content"] == prompt
    settings = dict(model=model, max_tokens=8, temperature=0)
    answer = client.completions.create(**settings, prompt=[tokens, tokens])
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert client.completions.create(**settings, prompt=prompt, echo=True).choices[0].text.startswith(prompt)
    chunks = list(client.completions.create(**settings, prompt=prompt, stream=True))
    assert chunks[-1].choices[0].finish_reason in ("stop", "length"), chunks[-1]


@check
def content_parts_are_text(client, model):
    parts = [{"type": "text", "text": "Name a "}, {"type": "text", "text": "fruit."}]
    settings = dict(model=model, max_tokens=8, temperature=0)
    client.chat.completions.create(**settings, messages=QUESTION)
    whole = client.chat.completions.create(**settings, messages=QUESTION)
    parted = client.chat.completions.create(**settings, messages=[{"role": "user", "content": parts}])
    assert parted.choices[0].message.content == whole.choices[0].message.content
    assert parted.usage.prompt_tokens == whole.usage.prompt_tokens
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    messages = [{"role": "user", "content": image}]
    refused(
        lambda: client.chat.completions.create(**settings, messages=messages),
        openai.BadRequestError,
        "messages[0].content[0].type",
    )


@check
def what_is_not_supported_is_refused_by_name(client, model):
    for param, settings in [
        ("tools[0].type", {"tools": [{"type": "custom", "custom": {"name": "f"}}]}),
        ("modalities", {"modalities": ["text", "audio"]}),
        ("reasoning_effort", {"reasoning_effort": "high"}),
        ("temperature", {"temperature": 5}),
        ("n", {"n": 1000}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("store", {"store": True}),
    ]:
        refused(
            lambda: client.chat.completions.create(model=model, messages=QUESTION, **settings),
            openai.BadRequestError,
            param,
        )
    refused(lambda: client.chat.completions.create(model="no-such", messages=QUESTION), openai.NotFoundError, "model")


SCHEMA = {
    "type": "object",
    "properties": {"fruit": {"type": "string", "maxLength": 12}, "ripe": {"type": "boolean"}, "pieces": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["fruit", "ripe", "pieces"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string", "maxLength": 12}}, "required": ["town"], "additionalProperties": False},
    },
}


@check
def json_is_json(client, model):
    settings = dict(model=model, messages=QUESTION, max_tokens=200, temperature=0)
    format = {"type": "json_schema", "json_schema": {"name": "fruit", "schema": SCHEMA, "strict": True}}
    for stream in (False, True):
        answer = client.chat.completions.create(**settings, response_format=format, stream=stream)
        text = text_of(list(answer)) if stream else answer.choices[0].message.content
        value = json.loads(text)
        assert set(value) == {"fruit", "ripe", "pieces"} and isinstance(value["ripe"], bool) and 0 <= value["pieces"] <= 9, value
    answer = client.chat.completions.create(**settings, response_format={"type": "json_object"})
    choice = answer.choices[0]
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict), choice
    assert choice.message.content.startswith("{"), choice
    answer = client.chat.completions.create(**settings, extra_body={"grammar": {"regex": "(yes|no), [0-9]{2}"}})
    assert answer.choices[0].message.content in [f"{word}, {n:02}" for word in ("yes", "no") for n in range(100)], answer
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}}
    refused(lambda: client.chat.completions.create(**settings, response_format=wrong), openai.BadRequestError, "response_format")


@check
def parsed_answers_of_the_client_work(client, model):
    import pydantic

    class Fruit(pydantic.BaseModel):
        name: typing.Annotated[str, pydantic.Field(max_length=12)]
        ripe: bool

    answer = client.chat.completions.parse(model=model, messages=QUESTION, max_tokens=100, temperature=0, response_format=Fruit)
    assert isinstance(answer.choices[0].message.parsed, Fruit), answer


@check
def tools_are_called_and_answered(client, model):
    messages = [{"role": "user", "content": "How is the weather in Oslo?"}]
    settings = dict(model=model, max_tokens=100, temperature=0, tools=[TOOL])
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        answer = client.chat.completions.create(**settings, messages=messages, tool_choice=choice)
        message = answer.choices[0].message
        assert answer.choices[0].finish_reason == "tool_calls" and message.content is None, answer
        call = message.tool_calls[0]
        assert call.type == "function" and call.id and call.function.name == "get_weather", call
        assert set(json.loads(call.function.arguments)) == {"town"}, call
    chunks = list(client.chat.completions.create(**settings, messages=messages, tool_choice="required", stream=True))
    calls = [chunk.choices[0].delta.tool_calls[0] for chunk in chunks if chunk.choices and chunk.choices[0].delta.tool_calls]
    assert len(calls) == 1 and json.loads(calls[0].function.arguments) and calls[0].function.name == "get_weather", calls
    assert chunks[-1].choices[0].finish_reason == "tool_calls", chunks[-1]
    # The call and its result go back.
    messages += [message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "Rain, 7 degrees."}]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=20, temperature=0, tools=[TOOL], tool_choice="none")
    assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls, answer
    # Left to itself, the model may call or speak; either must have its form.
    answer = client.chat.completions.create(**settings, messages=messages[:1])
    choice = answer.choices[0]
    assert bool(choice.message.tool_calls) == (choice.finish_reason == "tool_calls"), choice


@check
def the_template_can_be_looked_at(client, model):
    origin = str(client.base_url).rstrip("/").removesuffix("/v1")
    prompt = post(client, f"{origin}/apply-template", {"messages": QUESTION})["prompt"]
    assert "Name a fruit." in prompt, prompt
    assert "get_weather" in post(client, f"{origin}/apply-template", {"messages": QUESTION, "tools": [TOOL]})["prompt"]


@check
def streams_share_the_model(client, model):
    long = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Tell a long story."}], max_tokens=300, stream=True)
    next(iter(long))
    started = time.monotonic()
    client.chat.completions.create(model=model, messages=QUESTION, max_tokens=2)
    seconds = time.monotonic() - started
    rest = sum(1 for _ in long)
    assert rest > 5, f"the long answer was over before the short one ({seconds:.1f} s)"


@check
def penalties_are_honoured(client, model):
    settings = dict(model=model, prompt="la la la la la la", max_tokens=20, temperature=0)
    plain = client.completions.create(**settings).choices[0].text
    other = client.completions.create(**settings, frequency_penalty=2, presence_penalty=2).choices[0].text
    assert plain != other, plain


@check
def the_model_goes_by_default(client, model):
    answer = client.chat.completions.create(model="default", messages=QUESTION, max_tokens=1)
    assert answer.model == model, answer


@check
def a_prompt_beyond_the_context_is_refused(client, model):
    messages = [{"role": "user", "content": "word " * 150_000}]
    error = refused(
        lambda: client.chat.completions.create(model=model, messages=messages), openai.BadRequestError, "messages"
    )
    assert error.body["code"] == "context_length_exceeded", error.body


@check
def a_client_that_leaves_makes_room(client, model):
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Tell a long story."}], max_tokens=4000, stream=True
    )
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    stream.close()
    started = time.monotonic()
    client.chat.completions.create(model=model, messages=QUESTION, max_tokens=1)
    seconds = time.monotonic() - started
    assert seconds < 10, f"the next answer took {seconds:.1f} s: the story went on"


@check
def embeddings_are_unit_vectors(client, model):
    answer = client.embeddings.create(model=model, input=["a cat", "a kitten"])
    for item in answer.data:
        assert abs(math.sqrt(sum(value * value for value in item.embedding)) - 1) < 1e-3
    plain = client.embeddings.create(model=model, input="a cat", encoding_format="float")
    distance = max(abs(a - b) for a, b in zip(plain.data[0].embedding, answer.data[0].embedding, strict=True))
    assert distance < 1e-5, distance


def post(client, url, body):
    headers = {"content-type": "application/json", "authorization": f"Bearer {client.api_key}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


@check
def a_foreign_host_is_refused(client, model):
    origin = str(client.base_url).rstrip("/").removesuffix("/v1")
    request = urllib.request.Request(f"{origin}/v1/models", headers={"host": "evil.example"})
    try:
        urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        assert error.code == 403, error.code
        return
    raise AssertionError("a request for another host was answered")


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    api_key = sys.argv[2] if len(sys.argv) == 3 else "none"
    client = openai.OpenAI(base_url=sys.argv[1], api_key=api_key, max_retries=0, timeout=120)
    served = client.models.list().data
    if not served:
        sys.exit("no model is served; wait for /readyz")
    n_failed = 0
    for function in CHECKS:
        try:
            function(client, served[0].id)
            print(f"ok   {function.__name__}")
        except Exception as error:
            n_failed += 1
            line = traceback.extract_tb(error.__traceback__)[-1].lineno
            print(f"FAIL {function.__name__}: {type(error).__name__} (line {line}): {error}")
    print(f"{len(CHECKS) - n_failed} of {len(CHECKS)} checks hold")
    sys.exit(1 if n_failed else 0)


if __name__ == "__main__":
    main()
