defmodule MyPort do
  @moduledoc """
  A port of HF peft's Prompt Tuning and Prefix Tuning, as refpeft asks it.

  Here are the answers (this is where the port grows) and the protocol; `MyPort.Tensors` reads and writes files. README.md
  says how to judge it, NEXT.md what to write next. Standard output belongs to the protocol: print with
  `IO.puts(:stderr, …)`.
  """

  alias MyPort.Tensors

  # What is not written yet, in the order of writing, and the clause to read first.
  @not_yet [
    {"inputs", "PO-1"},
    {"prefix.encode", "PX-4"},
    {"attention", "AT-2"},
    {"forward", "TK-2"},
    {"gradients", "TK-3"},
    {"training", "TR-1"},
    {"generate", "GN-1"},
    {"checkpoint.load", "CK-3"},
    {"checkpoint.save", "CK-1"},
    {"config.resolve", "CF-3"},
    {"init", "PT-5"},
    {"random", "PT-4"}
  ]

  @answered ["mask"]

  @abilities %{
    version: 1,
    implementation: %{name: "my-port", language: "elixir", version: "0.1.0"},
    families: ["gpt2"],
    methods: ["prompt_tuning", "prefix_tuning"],
    tasks: ["CAUSAL_LM"],
    questions: @answered ++ Enum.map(@not_yet, &elem(&1, 0)),
    profiles: ["float32", "float64"]
  }

  # ------------------------------------------------------------------------------------------------------- answers

  # A question's clause gets the message `run` and returns its answer: Tensors.write(…), or %{document: %{…}},
  # %{adapter: "a directory below output"}, %{skipped: %{message: "…"}} (`refpeft explain PP-3`).
  def answer("mask", request), do: mask(request)

  def answer(question, _request) do
    {_, clause} = List.keyfind(@not_yet, question, 0, {question, "PP-4"})
    why = "#{question} is not written yet: read `refpeft explain #{clause}`, then write it in lib/my_port.ex"
    %{skipped: %{message: why}}
  end

  # The mask over virtual and real tokens: (batch, tokens) -> (batch, virtual + tokens)
  defp mask(request) do
    %{"batch_size" => batch, "num_virtual_tokens" => virtual} = request["arguments"]
    ones = Nx.broadcast(Nx.tensor(1, type: Tensors.real(request)), {batch, virtual})

    extended =
      case Tensors.inputs(request) do
        %{"attention_mask" => given} -> Nx.concatenate([ones, given], axis: 1)
        %{} -> ones
      end

    Tensors.write(request, %{"inputs.attention_mask" => extended})
  end

  # ------------------------------------------------------------------------------------------------------ protocol

  @doc "Answers each line of standard input with a line on standard output."
  def main do
    :io.setopts(:standard_io, encoding: :unicode)

    Enum.reduce_while(IO.stream(:stdio, :line), :ok, fn line, :ok ->
      case Jason.decode!(line) do
        %{"cmd" => "stop"} ->
          {:halt, :ok}

        message ->
          IO.puts(Jason.encode!(respond(message), escape: :unicode_safe))
          {:cont, :ok}
      end
    end)
  end

  defp respond(%{"cmd" => "start"}), do: @abilities

  defp respond(%{"cmd" => "run", "question" => question} = message) do
    Map.put(answer(question, message), :seq, message["seq"])
  rescue
    error ->
      traceback = Exception.format(:error, error, __STACKTRACE__)
      %{seq: message["seq"], errored: %{message: Exception.message(error), traceback: traceback}}
  end

  defp respond(message) do
    %{seq: Map.get(message, "seq", -1), errored: %{message: "unknown command #{message["cmd"]}"}}
  end
end
