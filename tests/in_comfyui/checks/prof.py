import cProfile
import io
import pstats


def it(folder):
    from worker import _check_module
    c=_check_module("cards")
    _, clip, vae = c.load_embedded()
    path=c.too_wide(c.bridge.tokenizer_of(clip).size, False)
    print(c.bridge.tokenizer_of(clip).size)
    right = c.bridge.load_network(path, "fp16", None)
    act=c.jobs(clip,vae,folder)["Uni-Flow Sampler"]
    out=[]
    for i in range(2):
        p=cProfile.Profile(); p.enable(); act(right); p.disable()
        s=io.StringIO(); pstats.Stats(p,stream=s).sort_stats("tottime").print_stats(25); out+=s.getvalue().splitlines()
    return out
